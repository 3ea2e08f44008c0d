"""The blocks that are not done yet, and the ways in which their operations end."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine.batch import Batch
from recurra.server.engine.operation import Block, Kind, Rows
from recurra.server.engine.scheduler import Part, Scheduler
from recurra.server.engine.seams import Clock
from recurra.server.engine.slots import Slots
from recurra.server.statistics import Total
from recurra.server.telemetry import ModelMetrics
from recurra.wire.errors import Contended, RecurraError

Array = NDArray[Any]

_MAX_TRIES: Final = 4


class Pending:
    """Every operation that came in is answered, refused or decided anew here, and keeps its session's slot till then.

    Attributes:
        wake: set when the engine may have something to do.
    """

    def __init__(self, slots: Slots, scheduler: Scheduler, clock: Clock, metrics: ModelMetrics) -> None:
        self.wake = asyncio.Event()
        self._slots, self._scheduler, self._clock, self._metrics = slots, scheduler, clock, metrics
        self._statistics = metrics.statistics
        self._blocks: set[Block] = set()
        self._none = asyncio.Event()

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, block: Block) -> None:
        """Queue a block."""
        self._blocks.add(block)
        self._none.clear()
        self._slots.pin(block.slots)
        self._scheduler.add(block)
        self.wake.set()

    async def none(self) -> None:
        """Wait until all are done."""
        if self._blocks:
            await self._none.wait()

    def answer(
        self, batch: Batch, outputs: list[Array], states: list[Array], headers: Array, durable: Array | None = None
    ) -> None:
        """All of a batch is done.

        Args:
            outputs, states: (N, ...), what the clients get.
            headers: (N,) HEADER, where the sessions stand.
            durable: (N,) the positions that the store has; None for the headers'.
        """
        at, now, waited = 0, self._clock.monotonic(), 0.0
        for block, rows in batch.parts:
            waited += (now - block.arrival) * len(rows)
            mine = slice(at, at + len(rows))
            stored = None if durable is None else durable[mine]
            block.answer(rows, [o[mine] for o in outputs], [s[mine] for s in states], headers[mine], stored)
            at += len(rows)
            self._ended(block)
        if batch.head.kind is Kind.PREDICT:
            self._statistics.success.add(at, waited)
        self._slots.unpin(batch.slots)

    def answer_rows(
        self,
        block: Block,
        rows: Rows,
        outputs: list[Array],
        states: list[Array],
        headers: Array,
        *,
        durable: Array | None = None,
    ) -> None:
        """Some rows of one block are done; each array (rows, ...); see `answer`."""
        block.answer(rows, outputs, states, headers, durable)
        self._count(self._statistics.success, block, len(rows))
        self._slots.unpin(block.slots[rows])
        self._ended(block)

    def refuse(self, part: Part, error: RecurraError) -> None:
        """These rows have failed."""
        block, rows = part
        for row in rows.tolist():
            block.refuse(row, error)
        self._count(self._statistics.fail, block, len(rows))
        self._slots.unpin(block.slots[rows])
        self._ended(block)

    def refuse_all(self, error: RecurraError) -> None:
        """Nothing goes on: queued, run or in flight."""
        self._scheduler.take(np.arange(len(self._slots.status)))
        for block in [*self._blocks]:
            self.refuse(Part(block, block.unanswered()), error)

    def redo(self, block: Block, rows: Rows) -> None:
        """Decide these rows anew, from what the store says."""
        block.tries[rows] += 1
        block.duplicates.difference_update(rows.tolist())
        tired = block.tries[rows] > _MAX_TRIES
        if tired.any():
            error = Contended("others kept writing the session; safe to retry", retry_after=0.05)
            self.refuse(Part(block, rows[tired]), error)
        if not tired.all():
            self._scheduler.put_back(block, rows[~tired])
            self.wake.set()

    def conflicted(self, block: Block, rows: Rows) -> None:
        """The store held something else than what these rows were to continue."""
        self._metrics.count_conflicts(len(rows))
        self.redo(block, rows)

    def current(self, batch: Batch) -> NDArray[np.bool_]:
        """Which rows still rest on what they were admitted to, (N,) bool; the others are put back.

        A commit of theirs may have failed meanwhile: then they were to continue a state that never was.
        """
        current: NDArray[np.bool_] = self._slots.epoch[batch.slots] == batch.epochs
        if not current.all():
            for block, rows in batch.only(~current).parts:
                self.redo(block, rows)
        return current

    def _count(self, total: Total, block: Block, rows: int) -> None:
        if block.kind is Kind.PREDICT:
            total.add(rows, (self._clock.monotonic() - block.arrival) * rows)

    def _ended(self, block: Block) -> None:
        if not block.pending:
            self._blocks.discard(block)
        if not self._blocks:
            self._none.set()
