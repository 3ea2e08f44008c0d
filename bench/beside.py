"""What sessions of 4 MB cost those of 2 KB beside them, on one server and one store.

    python -m bench.beside [--seconds S] [--repeats R]

64 small sessions step through a stream of the SDK, alone, and while some large ones of another model do; the store's
append-only file is off. Latencies of the small ones as their callers see them, medians of the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import models, processes
from recurra.client import AsyncClient, AsyncStream

SMALL, LARGE = 512, 1 << 20  # floats of state
_SMALL_SESSIONS, _LARGE_SESSIONS = 64, (0, 1, 4)
_X: Final = np.zeros(1, np.float32)
_LARGE_EVERY: Final = 0.02  # seconds between a large session's steps

Figures = dict[int, list[tuple[float, float, float, float]]]
"""By number of large sessions, each repeat: small steps a second, their p50 and p99 in ms, large steps a second."""


def repository(folder: Path) -> Path:
    """The models "small" and "large"."""
    sizes = {"small": SMALL, "large": LARGE}
    return models.repository(
        folder, **{name: models.independent(hidden=size, features=1) for name, size in sizes.items()}
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.beside", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each load runs")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    console = Console(width=100)
    with (
        tempfile.TemporaryDirectory() as folder,
        processes.store(Path(folder) / "store", append_only="off") as (url, _),
        processes.server(repository(Path(folder) / "models"), url) as (address, _),
    ):
        figures = asyncio.run(_measure(address, options, console))
    table = Table("large sessions", "small steps/s", "p50 ms", "p99 ms", "large steps/s", title="64 sessions of 2 KB")
    for count, runs in figures.items():
        each = [median(column) for column in zip(*runs, strict=True)]
        table.add_row(str(count), f"{each[0]:,.0f}", f"{each[1]:.2f}", f"{each[2]:.2f}", f"{each[3]:.0f}")
    console.print(table)


async def _measure(address: str, options: argparse.Namespace, console: Console) -> Figures:
    figures: Figures = defaultdict(list)
    async with AsyncClient(address) as client, client.stream("small") as small, client.stream("large") as large:
        await _run(small, large, max(_LARGE_SESSIONS), options.seconds / 3)  # opens the sessions
        for _ in track(range(options.repeats), "measuring", console=console):
            for count in _LARGE_SESSIONS:
                figures[count].append(await _run(small, large, count, options.seconds))
    return figures


async def _run(small: AsyncStream, large: AsyncStream, count: int, seconds: float) -> tuple[float, float, float, float]:
    latencies, steps, mark = list[float](), 0, os.urandom(4).hex()
    until = time.perf_counter() + seconds

    async def step_small(row: int) -> None:
        while (began := time.perf_counter()) < until:
            await small.predict(f"{mark} {row}", _X)
            latencies.append(time.perf_counter() - began)

    async def step_large(row: int) -> None:
        nonlocal steps
        while time.perf_counter() < until:
            await large.predict(f"large {row}", _X)
            steps += 1
            await asyncio.sleep(_LARGE_EVERY)

    await asyncio.gather(*map(step_small, range(_SMALL_SESSIONS)), *map(step_large, range(count)))
    p50, p99 = np.percentile(latencies, (50, 99)) * 1e3
    return len(latencies) / seconds, float(p50), float(p99), steps / seconds


if __name__ == "__main__":
    main()
