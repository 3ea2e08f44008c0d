"""What a timestep costs the service: `python -m bench` measures, `bench.report` tells; and the demo."""

import os

# As recurra.models has it: the runtime alone is measured on the same terms.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
