"""The SDK without anything else, in an environment of its own with the newest protobuf, against a real server.

    python -m tests.sdk_alone PYTHON

PYTHON has `pip install recurra` and nothing more. `make sdk-alone` makes such an environment and runs this.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.service.processes import ServerProcess

ROOT = Path(__file__).parents[2]

USE = """
import importlib.util, sys
import google.protobuf, grpc
import numpy as np
from recurra.client import Client, InvalidArgument

assert importlib.util.find_spec("onnxruntime") is None
readings = np.array([[8.9, 6, 60], [9.4, 7, 60], [10.1, 8, 60]], np.float32)
with Client(sys.argv[1]) as client:
    one = client.session("forecaster", "one")
    whole = one.predict(readings)
    one.reset()
    again = np.concatenate([one.predict(readings[:2]), one.predict(readings[2:])])
    both = client.batch("forecaster", ["two", "three"]).predict(np.stack([readings, readings]))
    streamed = list(client.session("forecaster", "four").stream(readings))
    for other in (again, both[0], both[1], np.stack(streamed)):
        np.testing.assert_allclose(other, whole, rtol=0, atol=1e-5)
    try:
        one.predict(readings[:, :2])
    except InvalidArgument as error:
        print("told:", error)
    else:
        raise AssertionError("a wrong shape was taken")
    assert {found.session for found in client.sessions("forecaster")} == {"one", "two", "three", "four"}
print(f"the SDK alone works with protobuf {google.protobuf.__version__} and grpcio {grpc.__version__}")
"""


def main() -> int:
    """Run it; the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(ROOT / "models" / "repository", Path(folder) / "data")
        try:
            server.start()
            return subprocess.call([sys.argv[1], "-W", "error", "-c", USE, server.address], cwd=folder)
        finally:
            server.close()


if __name__ == "__main__":
    sys.exit(main())
