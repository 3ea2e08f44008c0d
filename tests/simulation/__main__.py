"""Run seeds of the simulation: `make simulate SEEDS=20000`, `FROM=5000`, or one, with its trace: `SEED=42`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.runs import runs
from tests.simulation.world import failed, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seed", type=int, help="this one alone, with its trace")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=2000)
    options = parser.parse_args()
    if options.seed is not None:
        report = simulate(options.seed)
        sys.stdout.write("\n".join([*report.trace, report.violation or "nothing is wrong", ""]))
        return report.violation is not None
    began, bad, seen = time.monotonic(), 0, Counter[str]()
    for report in runs(range(options.start, options.start + options.seeds)):
        seen += report.seen
        if report.violation is not None:
            bad += 1
            sys.stdout.write(f"{failed(report)}\n")
    kinds = ", ".join(f"{name.removeprefix('FAULT ')} {seen[name]}" for name in sorted(seen) if "FAULT" in name)
    seconds = time.monotonic() - began
    sys.stdout.write(f"{options.seeds} seeds in {seconds:.0f} s, {bad} failed; faults: {kinds}\n")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
