"""The servicers: messages in, operations to the engine, messages out. Protobuf is seen in here and in the app alone."""
