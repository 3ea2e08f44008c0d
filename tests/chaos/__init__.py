"""Real processes, real faults, and an oracle: `make chaos`."""
