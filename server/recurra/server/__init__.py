"""The service: settings, the app, its servicers, the engine and the store."""
