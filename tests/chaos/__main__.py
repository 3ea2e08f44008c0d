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
from rich.progress import Progress
from rich.status import Status

from tests.chaos.run import run
from tests.models import graphs
from tests.service.processes import ServerProcess
from tests.service.streams import step_streams
from tests.service.zoo import MODELS

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
    asyncio.run(_streams())
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


async def _streams() -> None:
    """The load of tests/service/test_where_others_fall.py, whole."""
    with tempfile.TemporaryDirectory(prefix="recurra-streams-") as folder, Progress() as progress:
        graphs.write(MODELS["lstm"].built, Path(folder) / "models", "lstm")
        server = ServerProcess(Path(folder) / "models", Path(folder) / "data").start()
        task = progress.add_task("a thousand streams, 100,000 operations", total=100_000)
        try:
            await step_streams(server.address, streams=1000, steps=100, progress=lambda: progress.advance(task))
        finally:
            server.close()
    sys.stdout.write("1,000 streams of a session each, 100,000 operations: every answer right\n")


def _show(status: Status, appendfsync: str, text: str) -> None:
    status.update(f"{appendfsync}: {text}")


if __name__ == "__main__":
    sys.exit(main())
