"""`python -m tests.chaos`: kills, suspends, cuts and fills up real processes while hundreds of sessions step."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.status import Status

from tests.chaos.run import run

RESULTS: Final = Path(__file__).with_name("results.json")


def main() -> int:
    """Exit status 1 if anything was lost, doubled or wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults are brought about, in each run")
    parser.add_argument("--sessions", type=int, default=300)
    parser.add_argument("--appendfsync", choices=("everysec", "always"), help="one of them, instead of both")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    reports = []
    for appendfsync in [options.appendfsync] if options.appendfsync else ("everysec", "always"):
        with tempfile.TemporaryDirectory(prefix="recurra-chaos-") as folder, Console().status("building") as status:
            show = partial(_show, status, appendfsync)
            asked = {"appendfsync": appendfsync, "seed": options.seed, "seconds": options.seconds}
            reports.append(asyncio.run(run(Path(folder), **asked, sessions=options.sessions, show=show)))
    options.output.write_text(json.dumps([report.as_dict() for report in reports], indent=1) + "\n")
    for report in reports:
        sys.stdout.write(f"{report}\n")
    return 0 if all(report.good for report in reports) else 1


def _show(status: Status, appendfsync: str, text: str) -> None:
    status.update(f"{appendfsync}: {text}")


if __name__ == "__main__":
    sys.exit(main())
