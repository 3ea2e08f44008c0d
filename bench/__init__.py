"""What a step costs, and the demo. `python -m bench` prints the costs, `python -m bench.profile` the calls."""
