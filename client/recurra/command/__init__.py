"""The command `recurra`, as a script: grpc's core reads what it may log when it is loaded, so that is said before."""

import os
from importlib import import_module


def main() -> int:
    """Run it; see recurra.client.cli."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or it tells on stderr, byte for byte, what strangers send
    status: int = import_module("recurra.client.cli").main()
    return status
