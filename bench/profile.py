"""How many Python calls the server makes for a frame, and where its time goes.

    python -m bench.profile [--sessions 64 1024] [--top 15]

The server runs in this process under cProfile, the client in another; calls a frame must not grow with its sessions.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import models, processes
from bench.loads import Sessions
from recurra.server.app import running
from recurra.server.settings import Settings

_FRAMES = 200


def main() -> None:
    """Profile a server for each number of sessions."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--sessions", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--top", type=int, default=15, help="how many functions to list")
    parser.add_argument("--load", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        asyncio.run(_load(options.load, options.sessions[0]))
        return
    table = Table("sessions", "calls a frame", "of the event loop", "µs a frame", title="Python calls, profiled")
    for count in options.sessions:
        with tempfile.TemporaryDirectory() as folder:
            stats = asyncio.run(_profile(Path(folder), count))
        stats.sort_stats("tottime").print_stats(options.top)
        calls, turns, seconds = (total / _FRAMES for total in _totals(stats))
        table.add_row(str(count), f"{calls:.0f}", f"{turns:.0f}", f"{seconds * 1e6:.0f}")
    Console().print(table)


def _totals(stats: pstats.Stats) -> tuple[int, int, float]:
    """Calls, those of asyncio's own turns and sockets, and seconds without waiting.

    The event loop turns as often as sockets are ready, so its calls go with bytes, not with sessions.
    """
    calls = turns = 0
    seconds = 0.0
    for (file, _, name), (_, count, own, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        if "poll" in name:
            continue
        seconds += own
        if "asyncio" in file or "selectors" in file:
            turns += count
        elif file != "~":  # built-ins: C
            calls += count
    return calls, turns, seconds


async def _profile(folder: Path, count: int) -> pstats.Stats:
    repository = models.repository(folder / "models", lstm=models.lstm())
    (repository / "lstm" / "model.toml").write_text(f"max_batch = {count}\n")  # a frame is one batch
    with processes.store(folder / "store", append_only="everysec") as (url, _):
        flags = ["--models", str(repository), "--store", url, "--listen", "127.0.0.1:0", "--provider", "cpu"]
        ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with running(Settings.parse(flags, {}), ending) as address:
            arguments = ["-m", "bench.profile", "--load", address, "--sessions", str(count)]
            client = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
            assert client.stdout is not None
            assert client.stdin is not None
            await client.stdout.readline()  # warm: the sessions are in slots
            profile = cProfile.Profile()
            profile.enable()
            client.stdin.write(b"\n")
            await client.stdout.readline()
            profile.disable()
            await client.wait()
    return pstats.Stats(profile)


async def _load(address: str, count: int) -> None:
    sessions = Sessions(address, count)
    await sessions.some_frames(20)
    sys.stdout.write("warm\n")
    sys.stdout.flush()
    sys.stdin.readline()
    await sessions.some_frames(_FRAMES)
    sys.stdout.write("done\n")
    sys.stdout.flush()
    await sessions.close()


if __name__ == "__main__":
    main()
