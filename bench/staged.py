"""A large record in the script's arguments, or SET at a stage and renamed: what each costs, and who waits meanwhile.

    python -m bench.staged [--seconds S] [--repeats R]

At the level of the store's commands, append-only file everysec, the two forms in turns. CPU microseconds a record of
the store and of the process that packs and sends; the last columns are commits of one 2 KB record after the other, over
a connection of their own, meanwhile. Medians of the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import processes
from recurra.server.store import address, commit, record
from recurra.server.store.pipe import Pipe
from recurra.server.store.primary import OPENING

_KILOBYTES: Final = (4, 16, 32, 64, 128, 256, 1024, 4096)
_FORMS: Final = "inline", "staged"
_BATCH: Final = 64, 4 << 20  # records, and bytes, at most
_SMALL: Final = 2 << 10
_TTL_MS: Final = 600_000


class Writer:
    """N records that are replaced again and again, each commit after the last one's answer."""

    def __init__(self, url: str, count: int, size: int) -> None:
        self.commits, self.latencies = 0, list[float]()
        self._pipe = Pipe(address.primary(url, 10).pool, timeout_seconds=10, opening=OPENING)
        identities = [os.urandom(16) for _ in range(count)]
        self._keys = np.array([list(record.key(record.key_prefix("t", "m"), each)) for each in identities], np.uint8)
        self._ttl = np.full(count, _TTL_MS)
        self._records = np.frombuffer(os.urandom(count * size), np.uint8).reshape(count, size).copy()
        self._there = np.zeros((count, record.HEADER.itemsize), np.uint8)

    async def write(self, form: str) -> None:
        """Commit once."""
        began = time.perf_counter()
        head = self._records[:, : record.HEADER.itemsize]
        head[:] = np.frombuffer(os.urandom(head.size), np.uint8).reshape(head.shape)
        columns = self._keys, self._there, self._records, self._ttl
        if form == "staged":
            replies = await self._pipe.send(commit.staged(*columns).data.cast("B"), 2 * len(self._keys))
            outcomes = commit.outcomes(replies)
        else:
            sent = [self._pipe.send(each.wire.data, 1) for each in commit.commands(*columns)]
            outcomes = [outcome for each in sent for outcome in (await each)[0]]
        if {commit.APPLIED} != {each[0] if isinstance(each, list) else each for each in outcomes}:
            raise RuntimeError(f"the store answered {outcomes[0]}")
        self._there = head.copy()
        self.commits += 1
        self.latencies.append(time.perf_counter() - began)

    async def close(self) -> None:
        await self._pipe.close()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.staged", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each form runs")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    console, found = Console(width=110), defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, processes.store(Path(folder) / "store") as (url, pid):
        for _ in track(range(options.repeats), "measuring", console=console):
            for kilobytes in _KILOBYTES:
                for form in _FORMS:
                    found[kilobytes, form].append(
                        asyncio.run(_measured(url, pid, form, kilobytes << 10, options.seconds))
                    )
    table = Table("record", "form", "store µs", "sender µs", "both", "small ones' p50 ms", "p99 ms")
    for (kilobytes, form), runs in found.items():
        store, sender, p50, p99 = (median(column) for column in zip(*runs, strict=True))
        table.add_row(
            f"{kilobytes:,} KB",
            form,
            *(f"{each:,.1f}" for each in (store, sender, store + sender)),
            f"{p50:.2f}",
            f"{p99:.2f}",
        )
    console.print(table)


async def _measured(url: str, pid: int, form: str, size: int, seconds: float) -> tuple[float, float, float, float]:
    """Of the store and of this process CPU microseconds a record; p50 and p99 in ms of small commits meanwhile."""
    count = max(1, min(_BATCH[0], _BATCH[1] // size))
    large, small = Writer(url, count, size), Writer(url, 1, _SMALL)
    await large.write(form)
    used = await _used(_for_a_while(large, form, seconds), pid)
    records = (large.commits - 1) * count
    small_ones = asyncio.create_task(_again_and_again(small))
    await _for_a_while(large, form, seconds)
    small_ones.cancel()
    with suppress(asyncio.CancelledError):
        await small_ones
    for writer in (large, small):
        await writer.close()
    p50, p99 = np.percentile(small.latencies, (50, 99)) * 1e3
    return used[0] / records, used[1] / records, float(p50), float(p99)


async def _for_a_while(writer: Writer, form: str, seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        await writer.write(form)


async def _again_and_again(writer: Writer) -> None:
    while True:
        await writer.write("inline")


async def _used(work: Any, pid: int) -> tuple[float, float]:
    """CPU microseconds that the store and this process used while `work` was done."""
    before = [processes.cpu_microseconds(each) for each in (pid, os.getpid())]
    await work
    store, sender = (processes.cpu_microseconds(each) for each in (pid, os.getpid()))
    return store - before[0], sender - before[1]


if __name__ == "__main__":
    main()
