"""What a timestep costs the service: `python -m bench` measures, `bench.report` tells; and the demo."""
