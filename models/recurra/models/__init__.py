"""What makes a model servable: its signature and state pairs, the lift, the self-test, and running it."""
