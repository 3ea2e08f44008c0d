"""What a server does that is offered three times what it can serve, and one whose store hangs.

    python -m bench.overload [--quick] [--seconds 60] [--times 3] [--timeout 3]

An LSTM 2x256, committed; the store's file is everysec. Unary calls of 1,024 sessions come by a schedule over eight
connections, each with a deadline, and are not made again. First as much as is answered (the peak, 256 in flight), then
so many times that, then six tenths of it, during which the store is stopped for eight seconds (SIGSTOP). Last, single
timesteps on a stream, as many times its peak. Goodput is what was answered well and in time. Exit status 1 if under
overload that is less than 80 % of the peak, or memory grew by more than 256 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from bench import models, pictures, processes, results
from bench.calls import TOO_LATE, Calls, Requests, Tally
from bench.loads import Done, Sessions, names

DOCS: Final = Path(__file__).parents[1] / "docs"
_CONNECTIONS, _SESSIONS, _IN_FLIGHT = 8, 1024, 256
_SLICE_SECONDS: Final = 0.5
_STOPPED: Final = (4.0, 12.0)  # of 24 seconds
_LEAST, _MOST_BYTES = 0.8, 256 << 20
Phase = dict[str, Any]
"""By name: "slices" of half a second, each [offered, answered in time, refused, server's bytes, store's bytes]; totals
by outcome; "untold", the refused that were not told when to come back; the server's "cores"; latencies in seconds."""


def main() -> None:
    """Measure, keep the result, draw and judge it."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.overload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a sixth of it")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long too much is offered")
    parser.add_argument("--times", type=float, default=3.0, help="the peak")
    parser.add_argument("--timeout", type=float, default=3.0, help="of a call, in seconds")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    seconds = options.seconds / 6 if options.quick else options.seconds
    with tempfile.TemporaryDirectory(prefix="recurra-overload-") as folder:
        found = asyncio.run(_run(Path(folder), seconds, options.times, options.timeout))
    output = options.output or (results.QUICK if options.quick else results.KEPT)
    results.save("overload", found, output)
    if output == results.KEPT:
        pictures.overload(found).savefig(DOCS / "overload.png", dpi=100)
    Console(width=120).print(Markdown(table(found)))
    sys.exit(bad(found))


def bad(found: dict[str, Any]) -> bool:
    """Whether it fell under what it should hold."""
    peak, under = goodput(found["peak"]), goodput(found["overload"])
    streams = found["streams"]
    grown = max(row[3] for phase in ("overload", "hung") for row in found[phase]["slices"]) - found["bytes"]
    return under < _LEAST * peak or streams["overload"] < _LEAST * streams["peak"] or grown > _MOST_BYTES


def goodput(phase: Phase) -> float:
    """Calls answered in time, a second."""
    return float(phase["outcomes"].get("OK", 0) / (len(phase["slices"]) * _SLICE_SECONDS))


def table(found: dict[str, Any]) -> str:
    """What became of the calls."""
    rows = [
        "|  | offered/s | good/s | p50, p99 s | late | refused | not told when | server MB |",
        "|---|" + "---:|" * 7,
    ]
    for name in ("peak", "overload", "hung"):
        phase, outcomes = found[name], found[name]["outcomes"]
        total = sum(outcomes.values())
        offered = sum(row[0] for row in phase["slices"]) / (len(phase["slices"]) * _SLICE_SECONDS)
        late = outcomes.get("late", 0) + outcomes.get(TOO_LATE, 0)
        refused = total - outcomes.get("OK", 0) - late
        p50, p99 = phase["latencies"]
        most = max(row[3] for row in phase["slices"]) / 1e6
        rows.append(
            f"| {name} | {offered:,.0f} | {goodput(phase):,.0f} | {phase['cores']:.2f} | {p50:.2f}, {p99:.2f} "
            f"| {late / total:.0%} | {refused / total:.0%} | {phase['untold'] / max(1, refused):.0%} of these "
            f"| {most:,.0f} |"
        )
    streams = found["streams"]
    rows.append(
        f"| on a stream | {streams['offered']:,.0f} | {streams['overload']:,.0f} (peak {streams['peak']:,.0f}) |"
    )
    return "\n".join(rows)


async def _run(folder: Path, seconds: float, times: float, patience: float) -> dict[str, Any]:
    repository, shape = models.repository(folder / "models", lstm=models.lstm()), models.EXAMPLES["lstm"].shape
    with (
        processes.store(folder / "store", append_only="everysec") as (url, store),
        processes.server(repository, url) as (address, server),
    ):
        load = Load(address, Requests("lstm", names(_SESSIONS), shape), server, store)
        await load.closed(3.0)  # every session is in a slot
        resident = processes.resident_bytes(server)
        found: dict[str, Any] = {"bytes": resident, "times": times, "timeout": patience}
        found["peak"] = await load.closed(max(5.0, seconds / 6))
        peak = goodput(found["peak"])
        found["overload"] = await load.open(peak * times, seconds, patience)
        found["hung"] = await load.open(peak * 0.6, 24.0, patience, stopped=_STOPPED)
        found["streams"] = await _streams(address, shape, times, seconds / 6)
    return found


class Load:
    """Unary calls on a few connections."""

    def __init__(self, address: str, requests: Requests, server: int, store: int) -> None:
        host, _, port = address.rpartition(":")
        self._place, self._requests, self._pids = (host, int(port)), requests, (server, store)

    async def closed(self, seconds: float) -> Phase:
        """So many in flight at any time."""
        async with asyncio.timeout(seconds + 60):
            return await self._offer(seconds, 30.0, rate=0.0, stopped=None)

    async def open(
        self, rate: float, seconds: float, patience: float, *, stopped: tuple[float, float] | None = None
    ) -> Phase:
        """So many a second, whatever is answered. `stopped`: from when to when the store is, in seconds."""
        return await self._offer(seconds, patience, rate=rate, stopped=stopped)

    async def _offer(
        self, seconds: float, patience: float, *, rate: float, stopped: tuple[float, float] | None
    ) -> Phase:
        loop, tally, held = asyncio.get_running_loop(), Tally(_SLICE_SECONDS), list[list[int]]()
        lines = [
            (await loop.create_connection(lambda: Calls(tally, patience), *self._place))[1] for _ in range(_CONNECTIONS)
        ]
        for line in lines:
            await line.settled.wait()
        began = tally.began = time.perf_counter()
        due, used = Schedule(began, rate), processes.cpu_microseconds(self._pids[0])
        with self._hanging() as hang:
            while (now := time.perf_counter()) < began + seconds:
                for line in lines:
                    if not rate:
                        due.times = [now] * (_IN_FLIGHT // _CONNECTIONS - len(line))
                        _call(line, due.times, self._requests, tally)
                    line.send()
                for at in due.until(now) if rate else ():
                    _call(lines[due.count % _CONNECTIONS], [at], self._requests, tally)
                if len(held) <= tally.slice(now):
                    held.append([processes.resident_bytes(pid) for pid in self._pids])
                hang(stopped is not None and stopped[0] <= now - began < stopped[1])
                await asyncio.sleep(0.001)
        used = processes.cpu_microseconds(self._pids[0]) - used
        until = time.perf_counter() + patience
        while any(map(len, lines)) and time.perf_counter() < until:
            for line in lines:
                line.send()
            await asyncio.sleep(0.01)
        for line in lines:
            line.close()
        slices = [[tally.offered[at], tally.answered[at], tally.refused[at], *memory] for at, memory in enumerate(held)]
        spread = [results.short(value) for value in np.percentile(tally.latencies or [0.0], (50, 99)).tolist()]
        return {
            "slices": slices,
            "outcomes": dict(tally.outcomes),
            "untold": tally.untold,
            "cores": results.short(used / 1e6 / seconds),
            "open": tally.open,
            "latencies": spread,
        }

    @contextmanager
    def _hanging(self) -> Iterator[Any]:
        """To be told whether the store shall hang now; it does not afterwards."""
        hangs, store = False, self._pids[1]

        def hang(now: bool) -> None:  # noqa: FBT001
            nonlocal hangs
            if now != hangs:
                os.kill(store, signal.SIGSTOP if now else signal.SIGCONT)
                hangs = now

        try:
            yield hang
        finally:
            hang(False)


class Schedule:
    """Times at random, so many a second."""

    def __init__(self, began: float, rate: float) -> None:
        self._gap, self._random, self._next = 1 / (rate or 1), np.random.default_rng(2), began
        self.count, self.times = 0, list[float]()

    def until(self, now: float) -> Iterator[float]:
        """Those that have come."""
        while self._next <= now:
            yield self._next
            self._next += self._random.exponential(self._gap)
            self.count += 1


def _call(line: Calls, times: list[float], requests: Requests, tally: Tally) -> None:
    for due in times:
        tally.offered[tally.slice(due)] += 1
        line.call(due, requests.next())


async def _streams(address: str, shape: tuple[int, ...], times: float, seconds: float) -> dict[str, float]:
    """Timesteps a second on one stream of 64 sessions: as many as are answered, and then by a schedule."""
    async with Sessions(address, names(64), model="lstm", shape=shape) as sessions:
        await sessions.begin()

        async def rate(done: Any) -> float:
            began = time.perf_counter()
            result: Done = await done
            return result.timesteps / (time.perf_counter() - began)

        await sessions.singles(time.perf_counter() + 1)
        peak = await rate(sessions.singles(time.perf_counter() + seconds))
        under = await rate(sessions.offered("singles", peak * times, seconds))
    return {"peak": results.short(peak), "offered": results.short(peak * times), "overload": results.short(under)}


if __name__ == "__main__":
    main()
