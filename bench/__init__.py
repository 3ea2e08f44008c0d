"""What a step costs: measurements and the demo. `python -m bench` prints the table, `python -m bench.profile` the calls."""
