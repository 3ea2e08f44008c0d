"""`python -m tests.fuzz --minutes 10`: the fuzz again and again, each time with other examples, until one harms."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from pathlib import Path

import pytest


def main() -> int:
    """Exit status 1 at the first round that fails; what it tells repeats it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    until, rounds = time.monotonic() + 60 * parser.parse_args().minutes, 0
    while time.monotonic() < until:
        os.environ["FUZZ_SEED"] = seed = str(random.SystemRandom().randrange(1 << 30))
        os.environ["FUZZ_MODELS"] = "30"
        if pytest.main(["-x", f"--hypothesis-seed={seed}", str(Path(__file__).parent)]):
            print(f"FUZZ_SEED={seed} FUZZ_MODELS=30 pytest tests/fuzz --hypothesis-seed={seed}")
            return 1
        rounds += 1
    print(f"{rounds} rounds, and nothing was harmed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
