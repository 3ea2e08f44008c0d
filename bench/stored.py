"""What a timestep costs while the store holds up to a million sessions.

    python -m bench.stored [--sessions 1000000]

Sessions of an LSTM 1x32 are created by the service; at each mark frames of 64 are sent to the same 64 sessions, whose
state is hot, and to sessions picked at random among all, whose state has to be read once there are more than slots.
The store needs some 750 bytes of memory a session, and twice that on disk.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench import models, processes, results, tables
from bench.loads import Sessions, names
from bench.measure import metered

MARKS: Final = (1_000, 10_000, 100_000, 1_000_000)
_ROWS: Final = 64
_WAVE: Final = 1_024
_BOUND: Final = 65_536  # handles that a stream may have
_TINY: Final = models.EXAMPLES["tiny"]
Point = dict[str, Any]
"""At so many "sessions": "server" and "store", resident bytes; "hot" and "random", figures of a load."""


def main() -> None:
    """Fill the store, measure at the marks, keep the results."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.stored", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=MARKS[-1])
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each load is measured")
    parser.add_argument("--output", type=Path, default=results.KEPT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recurra-bench-") as folder:
        found = asyncio.run(_measured(Path(folder), options.sessions, options.seconds))
    results.save("stored", found, options.output)
    Console().print(Markdown(tables.stored(found)))


async def _measured(folder: Path, most: int, seconds: float) -> list[Point]:
    repository, found = models.repository(folder / "models", tiny=_TINY.build()), []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        processes.store(folder / "store") as (url, store),
        processes.server(repository, url) as (address, server),
        Progress(*columns) as progress,
    ):
        task, known, pids = progress.add_task("sessions", total=most), list[str](), {"server": server, "store": store}
        for mark in [*(mark for mark in MARKS if mark < most), most]:
            while len(known) < mark:
                new = names(min(_WAVE, mark - len(known)))
                async with Sessions(address, new, model="tiny", shape=_TINY.shape) as sessions:
                    await sessions.some_frames(1)
                known += new
                progress.update(task, completed=len(known))
            os.sync()  # the file is on the disk before a load begins
            point: Point = {"sessions": mark} | {name: processes.resident_bytes(pid) for name, pid in pids.items()}
            picked = np.random.default_rng(mark).permutation(mark)[:_BOUND]
            for name, some in {"hot": known[:_ROWS], "random": [known[index] for index in picked.tolist()]}.items():
                async with Sessions(address, some, model="tiny", shape=_TINY.shape) as sessions:
                    await sessions.in_turns(_ROWS, time.perf_counter() + seconds / 4)
                    load = sessions.in_turns(_ROWS, time.perf_counter() + seconds)
                    figures = await metered(pids | {"client": os.getpid()}, load)
                point[name] = {figure: results.short(value) for figure, value in figures.items()}
            found.append(point)
    return found


if __name__ == "__main__":
    main()
