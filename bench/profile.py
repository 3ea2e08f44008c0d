"""Where the CPU time of a frame goes, by process, thread and part of the code, and how many Python calls it makes.

    python -m bench.profile [--sessions 64 1024] [--durability checkpointed committed] [--top 15]

The server runs in this process, the client in another: first as it is, for the CPU time, then under cProfile, for the
event loop's shares and the number of calls, which must not grow with a frame's sessions.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import itertools
import os
import pstats
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from bench import floors, models, processes, results
from bench.loads import OPTIONS, Sessions, names
from recurra.server.app import running
from recurra.server.settings import Settings

TIMESTEPS: Final = 100_000
"""So many are measured, and profiled: in frames, two in flight."""
_MODEL, _THREADS, _LOOP = "model", "gRPC's threads", "MainThread"
_MESSAGES, _BATCHES = "event loop: messages", "event loop: batches"
_COMMITS, _TURNS = "event loop: commits", "event loop: gRPC and turns"
_PARTS: Final = {  # of the event loop's time, by what a file's path has in it
    "recurra/server/api": _MESSAGES,
    "recurra/wire": _MESSAGES,
    "google": _MESSAGES,
    "recurra/server/engine": _BATCHES,
    "recurra/models/session": _MODEL,  # short runs stay on the event loop's thread
    "onnxruntime": _MODEL,
    "recurra/models": _BATCHES,
    "recurra/server/store": _COMMITS,
    "selector_events": _COMMITS,  # the store's socket: gRPC has its own in C
    "asyncio": _TURNS,
    "selectors": _TURNS,
    "grpc": _TURNS,
}
PARTS: Final = (_MODEL, _BATCHES, _MESSAGES, _COMMITS, _TURNS, _THREADS, "store", "client")
RAW: Final = "ONNX Runtime alone"
_CALLS: Final = 100_000
Costs = dict[str, float]


class Split(NamedTuple):
    """Of frames of so many sessions: CPU microseconds a timestep by part, Python calls a frame, and asyncio's own."""

    durability: str
    sessions: int
    costs: Costs
    calls: float
    turns: float


def main() -> None:
    """Measure and profile a server for each number of sessions."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--durability", nargs="+", choices=list(OPTIONS), default=["checkpointed", "committed"])
    parser.add_argument("--top", type=int, default=15, help="how many functions to list")
    parser.add_argument("--output", type=Path, default=results.KEPT)
    parser.add_argument("--load", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        asyncio.run(_load(options.load, options.sessions[0], options.durability[0]))
        return
    found: list[Split] = []
    for durability, count in itertools.product(options.durability, options.sessions):
        with tempfile.TemporaryDirectory() as folder:
            costs, stats = asyncio.run(_measured(Path(folder), count, durability))
        stats.sort_stats("tottime").print_stats(options.top)
        found.append(Split(durability, count, costs, *(calls / _frames(count) for calls in _calls(stats))))
    results.save("split", [split._asdict() for split in found], options.output)
    heads = [f"{split.durability}, {split.sessions}" for split in found]
    table = Table("CPU µs a timestep", *heads, title="LSTM 2x256, frames, two in flight")
    for part in (*PARTS, RAW):
        table.add_row(part, *(f"{split.costs.get(part, 0):.1f}" for split in found))
    table.add_row("Python calls a frame", *(f"{split.calls:.0f}" for split in found))
    table.add_row("and asyncio's", *(f"{split.turns:.0f}" for split in found))
    Console().print(table)


def _frames(sessions: int) -> int:
    return TIMESTEPS // sessions


async def _measured(folder: Path, count: int, durability: str) -> tuple[Costs, pstats.Stats]:
    repository = models.repository(folder / "models", lstm=models.lstm())
    (repository / "lstm" / "model.toml").write_text(f"max_batch = {count}\n")  # a frame is one batch
    with processes.store(folder / "store") as (url, store):
        flags = ["--models", str(repository), "--store", url, "--listen", "127.0.0.1:0", "--provider", "cpu"]
        ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with running(Settings.parse(flags, {}), ending) as address:
            arguments = ["-m", "bench.profile", "--load", address, "--sessions", str(count), "--durability", durability]
            client = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
            assert client.stdout is not None
            assert client.stdin is not None
            await client.stdout.readline()  # warm: the sessions are in slots
            before = _used(store, client.pid)
            client.stdin.write(b"\n")
            await client.stdout.readline()
            used = _used(store, client.pid)
            profile = cProfile.Profile(time.thread_time)  # CPU time: waits for the GIL are nobody's cost
            profile.enable()
            client.stdin.write(b"\n")
            await client.stdout.readline()
            profile.disable()
            await client.wait()
    session, began = floors.raw(models.lstm()), time.process_time()
    run = await floors.run(session, min(count, 256), time.perf_counter() + 2)
    raw = 1e6 * (time.process_time() - began) / run.timesteps
    stats = pstats.Stats(profile)
    steps = _frames(count) * count
    costs = {name: (used[name] - before[name]) / steps for name in used}
    loop = costs.pop(_LOOP)
    for part, share in _shares(stats).items():
        costs[part] = costs.get(part, 0.0) + loop * share
    return costs | {RAW: raw}, stats


def _used(store: int, client: int) -> Costs:
    """CPU microseconds so far: of this process's threads, and of the other processes."""
    used = defaultdict(float, store=processes.cpu_microseconds(store), client=processes.cpu_microseconds(client))
    known = {thread.native_id: thread.name for thread in threading.enumerate()}
    for task in Path("/proc/self/task").iterdir():
        thread = int(task.name)
        name = known.get(thread, "")
        part = name if name == _LOOP else _MODEL if name.startswith("device") else _THREADS
        used[part] += processes.cpu_microseconds(os.getpid(), thread)
    return used


def _calls(stats: pstats.Stats) -> tuple[int, int]:
    """Calls of Python functions, and apart from them those of asyncio's turns and sockets.

    The event loop turns as often as sockets are ready, so its calls go with bytes, not with sessions.
    """
    calls = turns = 0
    for (file, _, _), (_, count, _, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        if "asyncio" in file or "selectors" in file:
            turns += count
        elif file != "~":  # built-ins: C
            calls += count
    return calls, turns


def _shares(stats: pstats.Stats) -> Costs:
    """The event loop's time by part of the code: what is of no part itself counts for those that called it."""
    seconds: dict[str, float] = defaultdict(float)
    callee, caller = _overheads()
    for (file, _, name), (_, count, own, _, callers) in stats.stats.items():  # type: ignore[attr-defined]
        part = _part(file)
        if not callers and "poll" not in name:
            seconds[part or _TURNS] += own - count * callee
        for (by, _, _), (_, times, spent, _) in callers.items():
            seconds[_part(by) or _TURNS] -= times * caller
            if "poll" not in name:  # it waits
                seconds[part or _part(by) or _TURNS] += spent - times * callee
    total = sum(max(0.0, spent) for spent in seconds.values())
    return {part: max(0.0, spent) / total for part, spent in sorted(seconds.items())}


def _overheads() -> tuple[float, float]:
    """Seconds that the profiler itself adds to a function for each call of it, and to the one that calls it."""

    def nothing() -> None:
        pass

    def caller() -> None:
        for _ in range(_CALLS):
            nothing()

    began = time.thread_time()
    caller()
    plain = time.thread_time() - began
    profile = cProfile.Profile(time.thread_time)
    profile.runcall(caller)
    own = {name: spent for (_, _, name), (_, _, spent, _, _) in pstats.Stats(profile).stats.items()}  # type: ignore[attr-defined]
    return own["nothing"] / _CALLS, (own["caller"] - plain) / _CALLS


def _part(file: str) -> str | None:
    return next((part for place, part in _PARTS.items() if place in file), None)


async def _load(address: str, count: int, durability: str) -> None:
    """The client: says that it is warm, then twice sends as many frames as are measured."""
    async with Sessions(address, names(count), model="lstm", shape=(64,), durability=durability) as sessions:
        await sessions.begin()
        await sessions.some_frames(20)
        for _ in range(2):
            _say("ready")
            sys.stdin.readline()
            await sessions.some_frames(_frames(count), in_flight=2)
        _say("done")


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
