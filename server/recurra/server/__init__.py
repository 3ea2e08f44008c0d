"""The service: settings, the app, its servicers, the engine and the store."""

import os

# Before grpc is loaded, which reads it then: its core would log what strangers send, byte for byte.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
