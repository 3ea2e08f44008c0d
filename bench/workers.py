"""What several workers on one port give, and what they cost, beside one.

    python -m bench.workers [--workers 1 2] [--hidden 256] [--seconds S] [--repeats R] [--connections N]

LSTM of two layers, 64 features, 16 outputs, one timestep an operation, committed; the store's file is everysec. As many
connections as told, 16 sessions on each. The workers' numbers are interleaved within each repeat. CPU microseconds a
timestep are medians from /proc/PID/stat; where client, server and store share few cores, there is none for a second
worker to use, and what is shown is its cost: smaller batches.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import models, processes
from bench.loads import Done, Sessions, names

_LOADS = {"pairs": "frames of 16, 2 in flight", "unary": "unary"}
_SESSIONS = 16  # of a connection
_COLUMNS = ("timesteps/s", "server", "store", "client", "p50 ms", "p99 ms", "least busy")
Figures = dict[tuple[str, int], dict[str, list[float]]]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--hidden", type=int, default=256, help="units of each layer")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each load runs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--connections", type=int, default=8)
    options = parser.parse_args()
    figures: Figures = defaultdict(lambda: defaultdict(list))
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        repository = models.repository(Path(folder) / "models", lstm=models.lstm(hidden=options.hidden))
        runs = [(repeat, workers) for repeat in range(options.repeats) for workers in options.workers]
        for repeat, workers in track(runs, "measuring", console=console):
            place = Path(folder) / f"{repeat}-{workers}"
            with (
                processes.store(place, append_only="everysec") as (url, store),
                processes.server(repository, url, "--provider", "cpu", "--workers", str(workers)) as (address, server),
            ):
                serving = processes.children(server) if workers > 1 else [server]
                asyncio.run(_loads(figures, address, serving, store, options))
    console.print(_table(figures, options.connections))


async def _loads(figures: Figures, address: str, serving: list[int], store: int, options: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Sessions(address, names(_SESSIONS), model="lstm", shape=(64,)))
            for _ in range(options.connections)
        ]
        until = time.perf_counter() + options.seconds / 4
        await asyncio.gather(*(client.frames(until) for client in clients))
        for kind in _LOADS:
            row, own = figures[kind, len(serving)], time.process_time()
            before = {pid: processes.cpu_microseconds(pid) for pid in (*serving, store)}
            began = time.perf_counter()
            until = began + options.seconds
            loads: list[Done] = await asyncio.gather(*(getattr(client, kind)(until) for client in clients))
            seconds = time.perf_counter() - began
            used = {pid: processes.cpu_microseconds(pid) - before[pid] for pid in before}
            timesteps = sum(load.timesteps for load in loads)
            latencies = np.concatenate([load.latencies for load in loads]) * 1e3
            row["timesteps/s"].append(timesteps / seconds)
            row["server"].append(sum(used[pid] for pid in serving) / timesteps)
            row["store"].append(used[store] / timesteps)
            row["client"].append((time.process_time() - own) * 1e6 / timesteps)
            row["p50 ms"].append(float(np.percentile(latencies, 50)))
            row["p99 ms"].append(float(np.percentile(latencies, 99)))
            row["least busy"].append(100 * min(used[pid] for pid in serving) / sum(used[pid] for pid in serving))


def _table(figures: Figures, connections: int) -> Table:
    title = f"{connections} connections of {_SESSIONS} sessions: CPU µs a timestep, the least busy worker's share in %"
    table = Table("load", "workers", title=title)
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for kind, title in _LOADS.items():
        for (of, workers), row in figures.items():
            if of == kind:
                cells = (f"{median(row[name]):,.{0 if median(row[name]) > 30 else 1}f}" for name in _COLUMNS)
                table.add_row(title, str(workers), *cells)
    return table


if __name__ == "__main__":
    main()
