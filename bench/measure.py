"""Measuring one cell: its load, against the servers, echo and stores that stand ready for the whole run."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Final, Self

import numpy as np
import redis
from onnxruntime import InferenceSession

from bench import floors, models, processes
from bench.cells import Cell
from bench.loads import Done, Sessions, names
from bench.results import Figures

_PATIENCE_SECONDS: Final = 60.0  # a store whose disk is behind answers nobody


class Unavailable(Exception):
    """The server does not offer what a cell asks for."""


class Bench:
    """The processes of a run, and what was measured of them so far."""

    def __init__(self, cells: list[Cell], seconds: float) -> None:
        self.figures: dict[Cell, Figures] = {}
        self._cells, self._seconds = cells, seconds
        self._raw: dict[str, InferenceSession] = {}
        self._served: dict[str, tuple[str, int, str, int]] = {}  # by append-only policy
        self._echo = ("", 0)

    @classmethod
    @contextmanager
    def ready(cls, folder: Path, cells: list[Cell], *, seconds: float) -> Iterator[Self]:
        """With everything started that these cells need. `seconds`: how long each is measured."""
        bench = cls(cells, seconds)
        with ExitStack() as stack:
            bench._echo = stack.enter_context(processes.echo())
            for policy in dict.fromkeys(cell.store for cell in cells):
                names = dict.fromkeys(cell.model for cell in cells if cell.store == policy and cell.durability)
                built = {name: models.EXAMPLES[name].build() for name in names}
                url, store = stack.enter_context(processes.store(folder / policy, append_only=policy))
                address, server = "", 0
                if built:
                    repository = models.repository(folder / f"models-{policy}", **built)
                    more = ("--cache", str(folder / "cache"), "--slots", "4096")  # 16,384 states of 1 MB are too many
                    address, server = stack.enter_context(processes.server(repository, url, *more))
                bench._served[policy] = address, server, url, store
            yield bench

    async def measure(self, cell: Cell) -> None:
        """Measure a cell once more. Raises Unavailable."""
        measured = await (self._service(cell) if cell.durability else self._floor(cell))
        figures = self.figures.setdefault(cell, {})
        for name, value in measured.items():
            figures.setdefault(name, []).append(value)

    async def _floor(self, cell: Cell) -> dict[str, float]:
        until = time.perf_counter() + self._seconds * 0.75
        _, _, url, store = self._served[cell.store]
        match cell.kind:
            case "raw":
                if cell.model not in self._raw:
                    self._raw[cell.model] = floors.raw(models.EXAMPLES[cell.model].build())
                load = floors.run(self._raw[cell.model], cell.sessions, until)
                return await metered({"server": os.getpid()}, load)
            case "sets":
                pids = {"store": store, "client": os.getpid()}
                return await metered(pids, floors.sets(url, cell.sessions, cell.size, until))
            case "echo" | "stream echo":
                address, server = self._echo
                echo = floors.unary if cell.kind == "echo" else floors.stream
                pids = {"server": server, "client": os.getpid()}
                return await metered(pids, echo(address, cell.sessions, cell.size, until))
        raise ValueError(cell.kind)

    async def _service(self, cell: Cell) -> dict[str, float]:
        address, server, url, store = self._served[cell.store]
        pids = {"server": server, "store": store, "client": os.getpid()}
        shape = models.EXAMPLES[cell.model].shape
        own = names(cell.sessions)
        try:
            async with Sessions(address, own, model=cell.model, shape=shape, durability=cell.durability) as sessions:
                await sessions.begin()
                try:
                    await sessions.some_frames(3)
                except RuntimeError as error:
                    raise Unavailable(f"{cell.durability}: {error}") from error
                if cell.load:
                    peak = median(self.figures[cell._replace(load=0.0)]["rate"])
                    return await metered(pids, sessions.offered(cell.kind, peak * cell.load, self._seconds))
                return await metered(pids, getattr(sessions, cell.kind)(time.perf_counter() + self._seconds))
        finally:
            with redis.Redis.from_url(url, socket_timeout=_PATIENCE_SECONDS) as connection:
                connection.flushall()
            os.sync()  # no cell pays for the sessions and the files of those before


async def metered(pids: dict[str, int], load: Awaitable[Done]) -> dict[str, float]:
    """What a load took of these processes and of the clock."""
    before = {name: processes.cpu_microseconds(pid) for name, pid in pids.items()}
    began = time.perf_counter()
    done = await load
    seconds = time.perf_counter() - began
    used = {name: (processes.cpu_microseconds(pid) - before[name]) / done.timesteps for name, pid in pids.items()}
    p50, p99, p999 = (float(value) * 1e3 for value in np.percentile(done.latencies, (50, 99, 99.9)))
    spread = {"p50": p50, "p99": p99, "p999": p999, "messages": len(done.latencies)}
    return used | {"rate": done.timesteps / seconds} | spread
