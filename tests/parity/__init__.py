"""Each recurrent layer of Keras and PyTorch, exported and served, against its own framework's stateful run.

`python -m tests.parity` builds all cases in the frameworks; `make test` has those committed in tests/parity/cases.
"""
