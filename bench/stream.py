"""What a timestep costs through the SDK: its streams, beside its batches and its calls.

    python -m bench.stream [--seconds S] [--repeats R] [--durability checkpointed]

LSTM 2x256, one timestep an operation; the store's append-only file is off. N tasks that call `session.predict`, N tasks
that call `stream.predict`, one `stream.map` of N sessions, and one `batch.predict` after the other. CPU microseconds a
timestep of the client's process and the server's, medians of the repeats; latencies as the callers see them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import models, processes
from recurra.client import AsyncClient
from recurra.client.standing import Durability

_COUNTS = (1, 64, 1024)
_COLUMNS = ("client µs", "server µs", "timesteps/s", "p50 ms", "p99 ms")
_X = np.zeros(64, np.float32)


class Load:
    """What N sessions did until a time. `latencies` in seconds."""

    def __init__(self, client: AsyncClient, count: int, durability: Durability) -> None:
        names = [f"{os.urandom(4).hex()}-{at}" for at in range(count)]
        self.until, self.timesteps = 0.0, 0
        self.latencies: list[float] = []
        self._names = names
        self._handles = [client.session("lstm", name) for name in names]
        self._stream = client.stream("lstm", durability=durability)
        self._batch = client.batch("lstm", names, durability=durability)

    async def calls(self) -> None:
        """A call a timestep."""
        await self._tasks(lambda row: self._handles[row].predict(_X))

    async def predicts(self) -> None:
        """A task a session, on one stream."""
        await self._tasks(lambda row: self._stream.predict(self._names[row], _X))

    async def maps(self) -> None:
        """One source of all sessions, as fast as it is taken."""
        outputs = self._stream.map((name, _X) for name in itertools.cycle(self._names))
        async for _ in outputs:
            self.timesteps += 1
            if time.perf_counter() > self.until:
                break
        await outputs.aclose()

    async def batches(self) -> None:
        """All sessions move together."""
        x = np.stack([_X] * len(self._names))
        while (began := time.perf_counter()) < self.until:
            await self._batch.predict(x)
            self._count(len(x), began)

    async def close(self) -> None:
        """Have the store hold all."""
        await self._stream.close()
        await self._batch.close()

    async def _tasks(self, one: Callable[[int], Awaitable[object]]) -> None:
        async def task(row: int) -> None:
            while (began := time.perf_counter()) < self.until:
                await one(row)
                self._count(1, began)

        await asyncio.gather(*map(task, range(len(self._names))))

    def _count(self, timesteps: int, began: float) -> None:
        self.timesteps += timesteps
        self.latencies.append(time.perf_counter() - began)


_LOADS = {
    "session.predict": Load.calls,
    "stream.predict": Load.predicts,
    "stream.map": Load.maps,
    "batch": Load.batches,
}
Figures = dict[tuple[int, str], dict[str, list[float]]]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.stream", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each load runs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--durability", default="committed", choices=["committed", "checkpointed"])
    options = parser.parse_args()
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        repository = models.repository(Path(folder) / "models", lstm=models.lstm())
        with (
            processes.store(Path(folder) / "store", append_only="off") as (url, _),
            processes.server(repository, url, "--provider", "cpu") as (address, server),
        ):
            figures = asyncio.run(_measure(address, server, options, console))
    console.print(_table(figures, options.durability))


async def _measure(address: str, server: int, options: argparse.Namespace, console: Console) -> Figures:
    figures: Figures = defaultdict(lambda: defaultdict(list))
    runs = list(itertools.product(range(options.repeats), _COUNTS, _LOADS))
    for _, count, name in track(runs, "measuring", console=console):
        async with AsyncClient(address) as client:
            load = Load(client, count, options.durability)
            await _run(load, name, options.seconds / 4, server)  # opens the sessions
            for column, value in (await _run(load, name, options.seconds, server)).items():
                figures[count, name][column].append(value)
            await load.close()
    return figures


async def _run(load: Load, name: str, seconds: float, server: int) -> dict[str, float]:
    load.timesteps, load.latencies = 0, []
    pids = {"client µs": os.getpid(), "server µs": server}
    began, before = time.perf_counter(), {column: processes.cpu_microseconds(pid) for column, pid in pids.items()}
    load.until = began + seconds
    await _LOADS[name](load)
    passed = time.perf_counter() - began
    row = {column: (processes.cpu_microseconds(pid) - before[column]) / load.timesteps for column, pid in pids.items()}
    row["timesteps/s"] = load.timesteps / passed
    if load.latencies:
        p50, p99 = np.percentile(load.latencies, (50, 99))
        row |= {"p50 ms": float(p50) * 1e3, "p99 ms": float(p99) * 1e3}
    return row


def _table(figures: Figures, durability: str) -> Table:
    table = Table(title=f"A timestep through the SDK, {durability} (calls always committed)")
    table.add_column("sessions", justify="right")
    table.add_column("")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for (count, name), row in figures.items():
        table.add_row(str(count), name, *_cells(row))
    return table


def _cells(row: dict[str, list[float]]) -> Iterator[str]:
    for column in _COLUMNS:
        decimals = {"timesteps/s": 0, "p50 ms": 2, "p99 ms": 2}.get(column, 1)
        yield f"{median(row[column]):,.{decimals}f}" if row[column] else ""


if __name__ == "__main__":
    main()
