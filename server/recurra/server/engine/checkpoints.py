"""Operations acknowledged before the store has them, and their way there: oldest first, each session's last alone."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine import reply
from recurra.server.engine.batch import Batch
from recurra.server.engine.commits import Commits
from recurra.server.engine.flight import Flight
from recurra.server.engine.ownership import Ownership
from recurra.server.engine.seams import Clock, Runner
from recurra.server.engine.slots import Slots
from recurra.server.store import record
from recurra.server.telemetry import Log

Array = NDArray[Any]

_log = Log(__name__)

_ROWS: Final = 256  # a flight: packing more at once would keep others waiting
_FLIGHTS: Final = 2
_LATE_INTERVALS: Final = 2


class Checkpoints:
    """The slots that this replica owns, with the last reply of each. A slot that is dirty is owned."""

    def __init__(self, slots: Slots, runner: Runner, commits: Commits, clock: Clock, ownership: Ownership) -> None:
        self._slots, self._runner, self._commits, self._clock = slots, runner, commits, clock
        self._ownership, self._interval = ownership, ownership.seconds
        self._replies: dict[int, list[Array]] = {}  # by run: what its clients got
        self._run = np.zeros(len(slots.status), np.int64)  # by slot: of its last operation
        self._row = np.zeros(len(slots.status), np.intp)
        self._runs = 0
        self._flying: deque[Flight] = deque()
        self._leaving: list[Array] = []
        self._work, self._left = asyncio.Event(), asyncio.Event()

    @property
    def late(self) -> bool:
        """Whether the store is so far behind that nothing more may be acknowledged before it has it."""
        while self._flying and self._flying[0].landed:
            self._flying.popleft()
        sent = self._flying[0].started if self._flying else np.inf
        return self._clock.monotonic() - sent > _LATE_INTERVALS * self._interval

    def remember(self, slots: Array, tensors: list[Array]) -> None:
        """Keep the replies, (N, ...), of the last operations of sessions that are owned, or may soon be."""
        self._runs += 1
        self._replies[self._runs] = tensors
        self._run[slots], self._row[slots] = self._runs, np.arange(len(slots))
        self._work.set()

    def reply(self, slot: int) -> bytes:
        """The last reply of an owned session, as a record keeps it."""
        [(_, kept)] = self._packed(np.array([slot]))
        return kept.tobytes()

    def take(self, batch: Batch, headers: Array, tensors: list[Array]) -> NDArray[np.uint64]:
        """Take over what owned sessions did, before the store has it.

        Args:
            headers: (N,) HEADER, where they stand now.
            tensors: (N, ...), what the clients get.

        Returns:
            (N,), the positions that the store has.
        """
        slots = batch.slots
        if not reply.fits(tensors):
            tensors = []
            headers["flags"] |= record.REPLY_DROPPED
        self._slots.stands(slots, headers)
        self._slots.ttl_ms[slots] = batch.ttl_ms
        self._slots.dirty_at[slots] = np.minimum(self._slots.dirty_at[slots], self._clock.monotonic())
        self.remember(slots, tensors)
        return self._slots.durable[slots]

    def leave(self, slots: Array) -> None:
        """The stream of these sessions lets them go: they are written and released soon."""
        owned = slots[self._slots.owned[slots]]  # most streams own none, and nobody would take them from the list
        if len(owned):
            self._leaving.append(owned)
            self._left.set()

    async def flush(self, slots: Array, *, release: bool = False) -> None:
        """Write those of `slots` that are dirty, or owned where they are to be released; return once that landed."""
        await self._write(slots[release | (self._slots.dirty_at[slots] < np.inf)], release=release)
        await self._commits.landed()

    async def run(self) -> None:
        """Write what is due, for the engine's life."""
        while True:
            await self._work.wait()
            self._work.clear()
            tick_at = self._clock.monotonic() + self._interval / 2
            while self._replies:
                try:
                    async with asyncio.timeout(max(0.0, tick_at - self._clock.monotonic())):
                        await self._left.wait()
                except TimeoutError:
                    await self._tick()
                    tick_at = self._clock.monotonic() + self._interval / 2
                self._left.clear()
                while self._leaving:
                    await self._write(self._leaving.pop(), release=True)

    async def _tick(self) -> None:
        """Write what has been dirty for half an interval; let go of what was not used for a whole one."""
        slots = self._slots
        owned = np.flatnonzero(slots.owned)
        oldest_first = owned[np.argsort(slots.dirty_at[owned], kind="stable")]
        due = slots.dirty_at[oldest_first] <= self._clock.monotonic() - self._interval / 2
        await self._write(oldest_first[due | self._idle(oldest_first)])
        needed = set(self._run[slots.owned | (slots.pins > 0)].tolist())
        self._replies = {run: kept for run, kept in self._replies.items() if run in needed}

    async def _write(self, chosen: Array, *, release: bool = False) -> None:
        for at in range(0, len(chosen), _ROWS):
            while len(self._flying) >= _FLIGHTS:
                await self._commits.landed(self._flying.popleft())
            some = chosen[at : at + _ROWS]
            for slots, kept in self._packed(some[self._slots.owned[some]]):  # some were written, or lost, meanwhile
                mine = ~(self._idle(slots) | release)
                try:
                    self._flying.append(self._commits.checkpoint(slots, self._runner.gather(slots), kept, mine=mine))
                except Exception as error:  # noqa: BLE001 # such as MemoryError: clients are told BEHIND, and replay
                    _log.exception("checkpoint.failed", sessions=len(slots), error=error)
                    self._slots.give_up(slots)

    def _idle(self, slots: Array) -> NDArray[np.bool_]:
        return self._ownership.idle(self._slots.heads(slots), int(self._clock.time() * 1000))

    def _packed(self, slots: Array) -> list[tuple[Array, Array]]:
        """The slots, with their kept replies (N, R), by the replies' size."""
        by_size = defaultdict(list)
        runs = self._run[slots]
        for run in np.unique(runs).tolist():
            mine = slots[runs == run]
            kept = reply.pack([tensor[self._row[mine]] for tensor in self._replies[run]], rows=len(mine))
            by_size[kept.shape[1]].append((mine, kept))
        return [
            (np.concatenate(s), np.concatenate(k)) for s, k in (zip(*each, strict=True) for each in by_size.values())
        ]
