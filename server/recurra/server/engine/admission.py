"""Admission: of the operations taken from the queue, only what continues its session is run; the rest is told why."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.models import Model
from recurra.server.engine import reply
from recurra.server.engine.batch import Batch
from recurra.server.engine.checkpoints import Checkpoints
from recurra.server.engine.commits import Commits
from recurra.server.engine.digest import digests
from recurra.server.engine.judge import continues, judge
from recurra.server.engine.loader import Loader
from recurra.server.engine.operation import Block, Kind, Rows
from recurra.server.engine.ownership import Ownership
from recurra.server.engine.pending import Pending
from recurra.server.engine.scheduler import Part
from recurra.server.engine.seams import Clock
from recurra.server.engine.slots import Slots
from recurra.server.store import record
from recurra.wire.errors import (
    AlreadyApplied,
    Behind,
    NotReplicated,
    Overloaded,
    RecurraError,
    SessionExists,
    StateReset,
    StoreUnavailable,
)

Array = NDArray[Any]


class Admission:
    """Decides a batch by columns, and what does not fit row by row."""

    def __init__(
        self,
        model: Model,
        slots: Slots,
        clock: Clock,
        *,
        pending: Pending,
        ownership: Ownership,
        loader: Loader,
        commits: Commits,
        checkpoints: Checkpoints,
    ) -> None:
        self._slots, self._pending, self._clock = slots, pending, clock
        self._signature, self._reply_tag = model.signature, reply.tag(model.signature)
        self._layout = np.frombuffer(model.layout, "<u8")
        self._ownership, self._loader = ownership, loader
        self._commits, self._checkpoints = commits, checkpoints

    def admit(self, parts: list[Part]) -> Batch | None:
        """The batch of what may be run; None if nothing may."""
        batch = Batch(parts)
        batch.epochs = self._slots.epoch[batch.slots]
        if batch.head.stateless:
            return batch
        heads, now_ms = self._slots.heads(batch.slots), int(self._clock.time() * 1000)
        fits = continues(batch, heads, self._layout, self._ownership, now_ms=now_ms)
        if not batch.head.commit:  # no compare-and-set will tell whether the slot is up to date: it is fresh, or named
            fits &= batch.afters.any(1) | (self._slots.read_at[batch.slots] > batch.sequences)
        if fits.all():
            return batch
        for place, block, row in batch.each():
            if not fits[place]:
                self._decide(block, row)
        return batch.only(fits) if fits.any() else None

    def _decide(self, block: Block, row: int) -> None:
        """One operation does not continue what is in its slot: answer it from the store's word, or ask for that."""
        rows, slot = np.array([row]), int(block.slots[row])
        owned = bool(self._slots.owned[slot])  # then the slot knows more than the store
        kept = self._checkpoints.reply(slot) if owned else self._loader.replies.get(slot)
        if kept is None or not (owned or self._slots.read_at[slot] > block.sequence):
            self._ask(block, row)
            return
        head = self._slots.headers[slot]
        digest = digests([array[row : row + 1] for array in block.inputs], np.array([block.salt], np.uint64))[0]
        now_ms = int(self._clock.time() * 1000)
        others = bool(self._ownership.others(head[None], now_ms)[0])
        error = judge(block, row, head, self._layout, digest=digest, others=others, now_ms=now_ms)
        if error is None and not (head["id"] == block.ids[row]).all():
            self._ask(block, row)
            return
        if error is None and (head["flags"] & record.REPLY_DROPPED or head["reply_tag"] != self._reply_tag):
            error = AlreadyApplied(
                "the operation was applied before, and its reply is not kept: it was too large, or of another version",
                position=str(head["position"]),
            )
        applied = error is None or isinstance(error, AlreadyApplied)
        if applied and (block.replicated or (owned and not block.checkpointed)):
            self._confirm(block, rows, kept, error, owned=owned)
        elif owned and isinstance(error, Behind | SessionExists | StateReset):
            self._doubt(block, rows)
        elif error is not None:
            self._pending.refuse(Part(block, rows), error)
        else:
            block.duplicates.add(row)
            slots = block.slots[rows]
            durable = self._slots.durable[slots] if owned else None
            told = *self._kept(block, kept), self._slots.heads(slots)
            self._pending.answer_rows(block, rows, *told, durable=durable)

    def _doubt(self, block: Block, rows: Rows) -> None:
        """What does not fit an owned session may fit the store: another replica may have taken the session over."""
        self._checkpoints.leave(block.slots[rows])
        text = "the session is being written, which tells where it stands; nothing was applied, safe to retry"
        self._pending.refuse(Part(block, rows), Overloaded(text, retry_after=0.05))

    def _confirm(self, block: Block, rows: Rows, kept: bytes, error: RecurraError | None, *, owned: bool) -> None:
        """Answer a duplicate once the store has it, or the store's replicas."""
        if owned and (block.replicated or self._slots.dirty_at[block.slots[rows]] < np.inf):
            self._checkpoints.leave(block.slots[rows])
            later = NotReplicated if block.replicated else StoreUnavailable
            text = "the operation is not in the store yet: it is being written; safe to retry"
            self._pending.refuse(Part(block, rows), later(text, retry_after=0.05))
            return
        block.duplicates.update(rows.tolist())
        outputs, states = self._kept(block, kept) if error is None else ([], [])
        self._commits.confirm(Batch([Part(block, rows)]), outputs, states, error)

    def _ask(self, block: Block, row: int) -> None:
        """Have the session read again, and this operation decided anew."""
        self._slots.give_up(block.slots[row : row + 1])
        self._pending.redo(block, np.array([row]))

    def _kept(self, block: Block, kept: bytes) -> tuple[list[Array], list[Array]]:
        """The outputs and the states, (1, ...), of a reply that was kept."""
        outputs = [spec.dtype for spec in self._signature.outputs if block.kind is Kind.PREDICT]
        states = [spec.dtype for spec in self._signature.states if block.return_states]
        tensors = reply.unpack(kept, outputs + states)
        return tensors[: len(outputs)], tensors[len(outputs) :]
