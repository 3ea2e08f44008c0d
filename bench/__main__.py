"""What a timestep costs the service, beside its floors, all in one run.

    make bench        (python -m bench [--quick] [--only PATTERN] [--seconds S] [--repeats R] [--output FILE])

CPU microseconds are user and system time from /proc/PID/stat. Floors and loads take turns, repeat by repeat; what is
reported is the median of the repeats, with its range. Client, server and store share the machine: trust the ratios.
`python -m bench.report` makes the tables of docs/performance.md and its pictures.
"""

from __future__ import annotations

import argparse
import asyncio
import selectors
import sys
import tempfile
from pathlib import Path

import grpc.aio
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench import cells, results, tables
from bench.cells import Cell
from bench.measure import Bench, Unavailable


def main() -> None:
    """Measure, keep the results and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few cells, in a minute")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cells whose names this pattern finds")
    parser.add_argument("--list", action="store_true", help="tell the cells' names, and measure nothing")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each cell is measured in a repeat")
    parser.add_argument("--repeats", type=int, help="3; with --quick 1")
    parser.add_argument("--output", type=Path, help=f"{results.KEPT.name}, or, with --quick or --only, {results.QUICK}")
    options = parser.parse_args()
    chosen = cells.chosen(quick=options.quick, only=options.only)
    if options.list or not chosen:
        sys.exit("\n".join(map(str, chosen)) or "no cell has such a name; see --list")
    output = options.output or (results.QUICK if options.quick or options.only else results.KEPT)
    repeats = options.repeats or (1 if options.quick else 3)
    # Of the selectors, select alone waits for less than a millisecond: arrivals by a schedule need that.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_run(chosen, options.seconds, repeats, output))
    console = Console()
    console.width = max(console.width, 150)
    for table in tables.every(results.load(output)).values():
        console.print(Markdown(table))
    console.print(f"kept in {output}")


async def _run(chosen: list[Cell], seconds: float, repeats: int, output: Path) -> None:
    skipped: set[Cell] = set()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory(prefix="recurra-bench-") as folder,
        Progress(*columns) as progress,
        Bench.ready(Path(folder), chosen, seconds=seconds) as bench,
    ):
        task = progress.add_task("starting", total=repeats * len(chosen))
        for _ in range(repeats):
            for cell in chosen:
                progress.update(task, description=f"{cell!s:<44}", advance=1)
                peak = cell._replace(load=0.0)
                if peak in skipped or (cell.load and peak not in bench.figures):
                    continue
                try:
                    await bench.measure(cell)
                except Unavailable as error:
                    skipped.add(cell)
                    progress.console.print(f"skipped: {cell}: {error}")
                except (RuntimeError, grpc.aio.AioRpcError) as error:
                    progress.console.print(f"failed this once: {cell}: {error}")
            results.save("costs", results.rows(bench.figures), output)


if __name__ == "__main__":
    main()
