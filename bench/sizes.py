"""What a session takes: memory while it is hot, memory in the store, and the append-only file.

    python -m bench.sizes

Sessions are created by frames until all slots are full. A hot session costs the server what its resident memory grows
by for each one more, a stored one what the store's `used_memory` does; the file is looked at over some frames of 64.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Final

import redis
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

from bench import models, processes, results, tables
from bench.loads import Sessions, names
from recurra.models.repository import load_file

SLOTS: Final = {"tiny": 16_384, "lstm": 16_384, "gru": 16_384, "conv": 1_024}
_FRAME_BYTES: Final = 1 << 20  # of state: what the server needs for a frame is small beside what it keeps
_FRAMES: Final = 50
Sizes = dict[str, float]
"""Bytes, by name: "state"; "hot" and "stored", a session; "file", a committed timestep."""


def main() -> None:
    """Measure each model and keep the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.sizes", description=__doc__)
    parser.add_argument("--output", type=Path, default=results.KEPT)
    output = parser.parse_args().output
    found = {}
    for name in track(SLOTS, "measuring"):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = _measured(Path(folder), name)
    results.save("sizes", found, output)
    Console().print(Markdown(tables.sizes(found)))


def _measured(folder: Path, name: str) -> Sizes:
    repository, slots = models.repository(folder / "models", **{name: models.EXAMPLES[name].build()}), SLOTS[name]
    model = load_file(repository / name / "1" / "model.onnx", name, "1", repository / name, provider="cpu")
    state = sum(state.nbytes for state in model.signature.states)
    with (
        processes.store(folder / "store") as (url, _),
        processes.server(repository, url, "--slots", str(slots)) as (address, server),
        redis.Redis.from_url(url, decode_responses=True) as store,
    ):
        store.config_set("auto-aof-rewrite-percentage", 0)
        rows = max(1, min(64, _FRAME_BYTES // state))
        asyncio.run(_fill(address, name, slots // 4, rows=rows))  # by then, what is there once is there
        before = processes.resident_bytes(server), store.info("memory")["used_memory"], store.dbsize()
        asyncio.run(_fill(address, name, slots - slots // 4, rows=rows))
        hot = (processes.resident_bytes(server) - before[0]) / (slots - slots // 4)
        stored = (store.info("memory")["used_memory"] - before[1]) / (store.dbsize() - before[2])
        store.config_set("appendfsync", "always")  # the file has what was answered
        asyncio.run(_fill(address, name, 64))
        file = store.info("persistence")["aof_current_size"]
        timesteps = asyncio.run(_fill(address, name, 64, frames=_FRAMES))
        file = (store.info("persistence")["aof_current_size"] - file) / timesteps
    return {"state": state, "hot": round(hot), "stored": round(stored), "file": round(file)}


async def _fill(address: str, model: str, count: int, *, rows: int = 64, frames: int = 1) -> int:
    """So many new sessions, `rows` in a frame, and frames of each; returns their timesteps."""
    shape, timesteps = models.EXAMPLES[model].shape, 0
    for _ in range(0, count, rows):
        async with Sessions(address, names(rows), model=model, shape=shape) as sessions:
            timesteps += (await sessions.some_frames(frames)).timesteps
    return timesteps


if __name__ == "__main__":
    main()
