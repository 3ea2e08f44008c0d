"""Whether memory grows while sessions come and go.

    python -m bench.soak [--quick] [--sessions 100000] [--timesteps 10]

Waves of 256 sessions of an LSTM 2x256 are created, predict so many timesteps each in frames, and are left: one in ten
is ended, the others expire five seconds later. Exit status 1 if the server holds over 2 % more memory in the last
quarter of the run than in the second, or if the store keeps anything at the end but the ended sessions' tombstones.
The store writes no file: this is about memory, and no disk shall hold it up.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

import redis
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

from bench import models, processes, results, tables
from bench.loads import Sessions, names

WAVE: Final = 256
_ENDED: Final = WAVE // 10
_TTL_SECONDS: Final = 5
_SLOTS: Final = 4_096  # full early, so that what grows later would be a leak
_ALLOWED: Final = 1.02
_POINTS: Final = 200
_PATIENCE_SECONDS: Final = 60.0
Point = dict[str, float]
"""After so many "seconds", "sessions" and "timesteps": resident bytes of "server" and "store", the store's own count of
"used" bytes, and its "keys", of which so many are "tombstones"."""


def main() -> None:
    """Run, keep the points and judge them."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--timesteps", type=int, default=10, help="of each session")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    sessions = options.sessions // 10 if options.quick else options.sessions
    with tempfile.TemporaryDirectory(prefix="recurra-soak-") as folder:
        found = asyncio.run(_soaked(Path(folder), -(-sessions // WAVE), options.timesteps))
    results.save("soak", found, options.output or (results.QUICK if options.quick else results.KEPT))
    Console().print(Markdown(tables.soak(found)))
    leaked = growth(found) > _ALLOWED or found[-1]["keys"] != found[-1]["tombstones"]
    sys.exit(leaked)


def growth(found: list[Point]) -> float:
    """The server's memory in the last quarter of the run over that in the second one, medians."""
    run = [point["server"] for point in found[1:-1]]
    quarter = len(run) // 4
    return median(run[-quarter:]) / median(run[quarter : 2 * quarter])


async def _soaked(folder: Path, waves: int, steps: int) -> list[Point]:
    repository, shape = models.repository(folder / "models", lstm=models.lstm()), models.EXAMPLES["lstm"].shape
    (repository / "lstm" / "model.toml").write_text(f"session_ttl = {_TTL_SECONDS}\n")
    found: list[Point] = []
    with (
        processes.store(folder / "store", append_only="off") as (url, store),
        processes.server(repository, url, "--slots", str(_SLOTS)) as (address, server),
        redis.Redis.from_url(url, decode_responses=True) as connection,
    ):
        began, timesteps = time.perf_counter(), 0

        def look(waves: int) -> None:
            counted = {"sessions": waves * WAVE, "timesteps": timesteps, "tombstones": waves * _ENDED}
            resident = {"server": processes.resident_bytes(server), "store": processes.resident_bytes(store)}
            kept = {"used": connection.info("memory")["used_memory"], "keys": connection.dbsize()}
            found.append({"seconds": round(time.perf_counter() - began, 1)} | counted | resident | kept)

        look(0)
        for wave in track(range(1, waves + 1), f"waves of {WAVE} sessions"):
            async with Sessions(address, names(WAVE), model="lstm", shape=shape) as sessions:
                timesteps += (await sessions.some_frames(steps, in_flight=2)).timesteps
                await sessions.end(_ENDED)
            if wave % -(-waves // _POINTS) == 0:
                look(wave)
        _wait_for(connection, waves * _ENDED)
        look(waves)
    return found


def _wait_for(store: redis.Redis, keys: int) -> None:
    """Until no more keys than these are left, or patience ends."""
    until = time.perf_counter() + _PATIENCE_SECONDS
    while store.dbsize() > keys and time.perf_counter() < until:
        time.sleep(0.2)


if __name__ == "__main__":
    main()
