"""What a timestep costs the service, beside its floors, all in one run.

    make bench        (python -m bench [--seconds S] [--repeats R] [--sessions N])

LSTM 2x256, 64 features, 16 outputs, one timestep an operation. CPU microseconds are user and system time from
/proc/PID/stat, medians of the repeats with their range. Client and server share the machine: trust the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import floors, models, processes
from bench.loads import Load, Sessions

_STORES = ("off", "everysec", "always")
_LOADS = {"pairs": "frames, 2 in flight", "frames": "frames", "streams": "streams of 1", "unary": "unary"}
Figures = dict[str, dict[str, list[float]]]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each load runs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=64)
    options = parser.parse_args()
    figures: Figures = defaultdict(lambda: defaultdict(list))
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        model = models.lstm()
        repository = models.repository(Path(folder) / "models", lstm=model)
        for repeat in track(range(options.repeats), "measuring", console=console):
            figures["raw ONNX Runtime"]["server"].append(
                floors.raw_microseconds(model, options.sessions, options.seconds / 2)
            )
            _echo(figures, options.sessions, options.seconds)
            for policy in _STORES:
                place = Path(folder) / f"{policy}{repeat}"
                with (
                    processes.store(place, append_only=policy) as (url, store),
                    processes.server(repository, url, "--provider", "cpu") as (address, server),
                ):
                    asyncio.run(_loads(figures, policy, address, {"server": server, "store": store}, options))
    console.print(_table(figures, options.sessions))


def _echo(figures: Figures, callers: int, seconds: float) -> None:
    command = [sys.executable, "-m", "bench.floors"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = re.search(r"ready on (\S+)", process.stdout.readline())
        assert ready is not None
        before = processes.cpu_microseconds(process.pid)
        calls = asyncio.run(floors.call_echo(ready[1], callers, seconds / 2))
        used = processes.cpu_microseconds(process.pid) - before
        figures["gRPC unary echo"]["server"].append(used / calls)


async def _loads(
    figures: Figures, policy: str, address: str, pids: dict[str, int], options: argparse.Namespace
) -> None:
    sessions = Sessions(address, options.sessions)
    await sessions.frames(options.seconds / 4)
    for kind, title in _LOADS.items():
        before = {name: processes.cpu_microseconds(pid) for name, pid in pids.items()}
        load: Load = await getattr(sessions, kind)(options.seconds)
        row = figures[f"{title}, file {policy}"]
        for name, pid in pids.items():
            row[name].append((processes.cpu_microseconds(pid) - before[name]) / load.timesteps)
        row["rate"].append(load.timesteps / load.seconds)
        row["p50"].append(float(np.percentile(load.latencies, 50)) * 1e3)
        row["p99"].append(float(np.percentile(load.latencies, 99)) * 1e3)
    await sessions.close()


def _table(figures: Figures, sessions: int) -> Table:
    table = Table(
        title=f"CPU µs a timestep, {sessions} sessions, committed; by the store's append-only file (median, range)"
    )
    for name in ("", "server", "store", "both", "x raw", "timesteps/s", "p50 ms", "p99 ms"):
        table.add_column(name, justify="left" if not name else "right")
    raw = median(figures["raw ONNX Runtime"]["server"])
    for name, row in figures.items():
        both = median(row["server"]) + (median(row["store"]) if "store" in row else 0)
        table.add_row(
            name,
            *(_spread(row[column]) for column in ("server", "store")),
            f"{both:.1f}",
            f"{both / raw:.1f}",
            *(f"{median(row[c]):,.{d}f}" if c in row else "" for c, d in (("rate", 0), ("p50", 2), ("p99", 2))),
        )
    return table


def _spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.0f}-{max(values):.0f})" if values else ""


if __name__ == "__main__":
    main()
