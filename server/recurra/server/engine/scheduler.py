"""The queue of one model, and which operations the next batch holds. Pure: no clock, no I/O, no waiting."""

from __future__ import annotations

import math
import sys
from bisect import insort
from collections import defaultdict, deque
from collections.abc import Hashable
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine.operation import Block, Rows

_SCAN_BATCHES = 4  # how many batches' worth of blocks are looked at for one batch


class Part(NamedTuple):
    """Rows of one block, in a batch."""

    block: Block
    rows: Rows


class Scheduler:
    """Blocks in order of arrival.

    Of a session's own blocks only the first is looked at for a batch; those behind it stand aside until it is taken.

    Invariants: a session has at most one operation in a batch, and its operations start in order of arrival: none
    starts while an earlier one of the same session waits.
    """

    def __init__(self, *, max_batch: int, slots: int) -> None:
        self._max_batch = max_batch
        self._blocks: list[Block] = []
        self._behind: defaultdict[int, deque[Block]] = defaultdict(deque)  # by slot, of blocks of one operation
        self._first: dict[int, Block] = {}
        self._seen = np.zeros(slots, bool)
        self.queued = 0  # operations

    @property
    def since(self) -> float:
        """When the first that waits arrived; infinity where none does."""
        return self._blocks[0].arrival if self._blocks else math.inf

    def add(self, block: Block) -> None:
        """Queue all rows of a new block."""
        self.queued += len(block.waiting)
        if len(block.slots) == 1 and not block.stateless:
            slot = int(block.slots[0])
            if slot in self._first:
                self._behind[slot].append(block)
                return
            self._first[slot] = block
        self._blocks.append(block)

    def put_back(self, block: Block, rows: Rows) -> None:
        """Queue rows again that were started and are to be decided anew, in their old place."""
        self.queued += len(rows)
        if not len(block.waiting):
            insort(self._blocks, block, key=attrgetter("sequence"))
        block.waiting = np.sort(np.concatenate((block.waiting, rows)))

    def next(
        self,
        now: float,
        ready: NDArray[np.bool_],
        at_once: NDArray[np.bool_] | None = None,
        *,
        longest: int = sys.maxsize,
    ) -> tuple[list[Part], list[Part]]:
        """Take the next batch: blocks of one key, oldest first, rows whose slot is `ready` ((slots,) bool).

        A checkpointed block's rows are taken where their slot is `at_once`; None: `ready`.

        No chunk of more than `longest` timesteps is taken. Also answers what it came across that is past its deadline,
        taken out of the queue too.
        """
        parts: list[Part] = []
        late: list[Part] = []
        key: Hashable = None
        room, scanned, seen = self._max_batch, 0, self._seen
        looked_at = self._blocks[: self._max_batch * _SCAN_BATCHES]
        for block in looked_at:
            scanned += 1
            if block.deadline <= now:
                late.append(self._take(block, block.waiting))
                continue
            slots = block.slots[block.waiting]
            free = (ready if at_once is None or not block.checkpointed else at_once)[slots] & ~seen[slots]
            seen[slots] = True
            seen[0] = False  # stateless
            if block.timesteps > longest or (parts and block.key != key):
                continue
            rows = block.waiting[free][:room]
            if not len(rows):
                continue
            key = key if parts else block.key
            parts.append(self._take(block, rows))
            room -= len(rows)
            if not room:
                break
        for block in looked_at[:scanned]:
            seen[block.slots] = False
        changed = 2 * scanned  # each block taken may have let one step forward
        self._blocks[:changed] = [block for block in self._blocks[:changed] if len(block.waiting)]
        return parts, late

    def withdraw(self, block: Block) -> list[Part]:
        """Take out what of `block` was not started."""
        behind = self._behind.get(int(block.slots[0]))
        if behind and block in behind:
            behind.remove(block)
        elif block not in self._blocks:
            return []
        part = self._take(block, block.waiting)
        self._blocks = [block for block in self._blocks if len(block.waiting)]
        return [part]

    def take(self, slots: Rows) -> list[Part]:
        """Take out all operations of the sessions in `slots`."""
        parts = []
        waiting = [*self._blocks, *(block for slot in slots.tolist() for block in self._behind.pop(slot, ()))]
        for block in waiting:
            rows = block.waiting[np.isin(block.slots[block.waiting], slots)]
            if len(rows):
                parts.append(self._take(block, rows))
        self._blocks = [block for block in self._blocks if len(block.waiting)]
        return parts

    def _take(self, block: Block, rows: Rows) -> Part:
        whole = len(rows) == len(block.waiting)
        block.waiting = rows[:0] if whole else np.setdiff1d(block.waiting, rows, assume_unique=True)
        self.queued -= len(rows)
        if len(block.slots) == 1 and self._first.get(int(block.slots[0])) is block:
            self._promote(int(block.slots[0]))
        return Part(block, rows)

    def _promote(self, slot: int) -> None:
        """The first block of a session is taken: the next one steps forward, to where its turn is."""
        behind = self._behind.get(slot)
        if not behind:
            del self._first[slot]
            self._behind.pop(slot, None)
            return
        self._first[slot] = behind.popleft()
        insort(self._blocks, self._first[slot], key=attrgetter("sequence"))
