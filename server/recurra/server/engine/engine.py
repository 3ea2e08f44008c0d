"""The engine of one model: takes blocks of operations, makes batches, runs them, commits them, answers them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.models import Model
from recurra.server.engine import reply
from recurra.server.engine.batch import Batch
from recurra.server.engine.checkpoints import Checkpoints
from recurra.server.engine.chunks import PIECE, cuttable, run_long
from recurra.server.engine.commits import Commits, Draft, Flight
from recurra.server.engine.digest import digests
from recurra.server.engine.heads import advanced
from recurra.server.engine.judge import continues, judge
from recurra.server.engine.loader import Loader
from recurra.server.engine.operation import Block, Kind, Rows
from recurra.server.engine.outcome import Outcome
from recurra.server.engine.ownership import Ownership
from recurra.server.engine.reading import Reader
from recurra.server.engine.scheduler import Part, Scheduler
from recurra.server.engine.seams import Clock, Runner, Step, Store
from recurra.server.engine.slots import Slots
from recurra.server.store import record
from recurra.server.telemetry import Kind as MetricKind
from recurra.server.telemetry import Log, ModelMetrics
from recurra.wire.errors import (
    AlreadyApplied,
    Contended,
    DeadlineExceeded,
    Draining,
    InvalidArgument,
    Overloaded,
    RecurraError,
    RunFailed,
)

Array = NDArray[Any]

_log = Log(__name__)

_MAX_FLIGHTS: Final = 2  # batches on their way to the store: one more is run meanwhile, the next ones grow
_MAX_TRIES: Final = 4
_QUIET_TURNS, _MOST_TURNS, _ENOUGH = 48, 512, 32  # turns of the event loop, and operations: see Engine._arrive
_METRIC_KINDS: Final[dict[Kind, MetricKind]] = {
    Kind.PREDICT: "predict",
    Kind.RESET: "reset",
    Kind.SET: "set_state",
    Kind.END: "end",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a model may hold.

    `queue` in operations, `slots` in sessions; `checkpoint_seconds`: how long an operation that was acknowledged may be
    kept from the store.
    """

    queue: int
    slots: int
    checkpoint_seconds: float = 1.0


class Engine:
    """Serves one model. All methods are called on the event loop; the model runs on the runner's thread.

    An operation's way: submit, (load the session), next batch, admit, run, commit, settle. Answers are in the block.
    """

    def __init__(
        self, model: Model, runner: Runner, store: Store, clock: Clock, metrics: ModelMetrics, *, limits: Limits
    ) -> None:
        self.model, self._runner, self._store, self._clock = model, runner, store, clock
        self._metrics, self._limits = metrics, limits
        self._prefix = record.key_prefix("default", model.name)
        self._layout = np.frombuffer(model.layout, "<u8")
        signature = model.signature
        self._reply_tag = reply.tag([*signature.outputs, *signature.states])
        self._cuttable = cuttable(model)
        self._axes = [state.batch_axis for state in signature.states]
        self.reader = Reader(store, model.name)
        self.slots = Slots(limits.slots, self._prefix)
        self._scheduler = Scheduler(max_batch=model.max_batch, slots=limits.slots + 1)
        self._ownership = Ownership(limits.checkpoint_seconds)
        self._commits = Commits(
            self.slots,
            store,
            clock,
            ownership=self._ownership,
            layout=self._layout,
            reply_tag=self._reply_tag,
            redo=self._conflicted,
            answered=self._answer,
            settled=self._settled,
            landed=self._landed,
        )
        self._checkpoints = Checkpoints(self.slots, runner, self._commits, clock, self._ownership)
        self._unsent: list[tuple[Draft, list[Array], list[Array], list[Array]]] = []
        self._stateless = np.arange(limits.slots + 1) == 0  # ready while the store is behind
        self._loader = Loader(self.slots, runner, store)
        self._sequence = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._busy: set[Block] = set()  # those that are not done
        self._draining = False
        self._long: asyncio.Task[None] | None = None  # a long chunk on its way, in pieces

    # ---- what servicers call

    def slot(self, session: str) -> int:
        """The session's slot; pinned only once a block holds it. Raises Overloaded."""
        return self.slots.acquire(record.identity("default", self.model.name, session), session.encode())

    def submit(self, block: Block) -> None:
        """Queue a block. `block.done` tells when all its rows are answered. Raises Overloaded, Draining."""
        if self._draining:
            raise Draining("this replica is shutting down: retry, another one serves")
        count = len(block.slots)
        if count > self._limits.queue:
            raise InvalidArgument(f"{count} operations at once; this server queues at most {self._limits.queue}")
        if self._scheduler.queued + count > self._limits.queue:
            raise Overloaded(
                f"{self._scheduler.queued} operations wait for model '{self.model.name}' already", retry_after=0.05
            )
        if self.model.ragged is not None and 1 < block.timesteps <= PIECE:
            block.key = self._ragged_key(block)
        self._sequence += 1
        block.sequence, block.arrival = self._sequence, self._clock.monotonic()
        self._busy.add(block)
        self._idle.clear()
        self.slots.pin(block.slots)
        self._scheduler.add(block)
        self._wake.set()

    def _ragged_key(self, block: Block) -> Hashable:
        """Chunks go together up to the next power of two: at most half of what is run is padding."""
        timed = zip(block.inputs, self.model.signature.inputs, strict=True)
        shapes = [array.shape[1 + spec.has_time_axis :] for array, spec in timed]
        return block.key_for(1 << (block.timesteps - 1).bit_length(), shapes)

    def cancel(self, block: Block) -> None:
        """Nobody waits for this block any more: what was not started is not run. A commit that was sent goes on."""
        block.abandoned = True
        for part in self._scheduler.withdraw(block):
            self._refuse(part, DeadlineExceeded("cancelled before it was started"))

    async def look(self, session: str) -> record.Record | None:
        """The session's record, of all that was acknowledged here. Raises StoreUnavailable, DataLoss."""
        slot = self.slots.find(record.identity("default", self.model.name, session))
        if slot is not None:
            await self._checkpoints.flush(np.array([slot]))
        return await self.reader.look(session)

    def leave(self, slots: Rows) -> None:
        """A stream has let these sessions go: what they did is written, and other replicas may have them."""
        self._checkpoints.leave(slots)

    async def drain(self) -> None:
        """Take nothing new; return once everything queued or in flight is answered, and the store has it."""
        self._draining = True
        if self._busy:
            await self._idle.wait()
        await self._checkpoints.flush(np.flatnonzero(self.slots.owned), release=True)

    async def run(self) -> None:
        """Serve until cancelled; then everything unanswered is refused, and what else comes."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._commits.settle(), name=f"commits of {self.model.name}")
                tasks.create_task(self._checkpoints.run(), name=f"checkpoints of {self.model.name}")
                while True:
                    await self._turn(tasks)
                    if 0 < self._scheduler.queued < _ENOUGH:  # others had no turn while this batch was run
                        self._send()
                        await asyncio.sleep(0)
        finally:
            self._draining = True
            self.slots.owned[:] = False  # what is not written is lost: nobody waits for its way to the store
            self._scheduler.take(np.arange(len(self.slots.status)))
            for block in list(self._busy):  # queued, run, or in flight: a retry tells whether it was applied
                error = Draining("this replica was stopped: retry, another one serves")
                self._refuse(Part(block, block.unanswered()), error)

    # ---- one turn: load what is cold, run what is ready

    async def _turn(self, tasks: asyncio.TaskGroup) -> None:
        if self._scheduler.queued < _ENOUGH:  # else the next batch begins now, and this is done meanwhile
            self._send()
        await self._arrive()  # from here to the wait for a wake-up there is no other: none is missed
        cold = self.slots.to_load()
        if len(cold):
            tasks.create_task(self._load(cold), name=f"load for {self.model.name}")
        longest = PIECE if self._long and self._cuttable else sys.maxsize
        ready, at_once = self._ready()
        parts, late = self._scheduler.next(self._clock.monotonic(), ready, at_once, longest=longest)
        for part in late:
            self._refuse(part, DeadlineExceeded("its deadline passed in the queue"))
        batch = self._admit(parts) if parts else None
        if batch is not None:
            if batch.head.timesteps > PIECE and self._cuttable:
                self._send()
                self.slots.run_long(batch.slots, running=True)
                self._long = tasks.create_task(self._step_long(batch), name=f"long chunk for {self.model.name}")
            else:
                await self._step(batch)
            return
        self._send()
        if not parts and not late:
            self._wake.clear()
            await self._wake.wait()

    def _ready(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which slots may be run, (slots,) bool: for what is committed before it is answered, and for the rest."""
        slots, behind = self.slots, len(self._commits) >= _MAX_FLIGHTS
        ready = self._stateless if behind else slots.ready
        if self._checkpoints.late:
            return ready, self._stateless
        return ready, slots.ready & slots.owned if behind else ready

    async def _arrive(self) -> None:
        """Let calls come in that have reached the sockets already, if there are several callers.

        gRPC takes one call a turn of the event loop: without this, turns spent on batches of one keep batches at one,
        and a batch costs the same whether one or thirty share it. 48 quiet turns are about half a millisecond.
        """
        quiet = 0
        for _ in range(_MOST_TURNS):
            alone = len(self._busy) < 2  # noqa: PLR2004
            if alone or quiet == _QUIET_TURNS or not 0 < self._scheduler.queued < _ENOUGH:
                break
            before = self._sequence
            os.sched_yield()  # gRPC's own thread brings the calls; where cores are short it would not get one
            await asyncio.sleep(0)
            quiet = quiet + 1 if before == self._sequence else 0

    async def _load(self, slots: Rows) -> None:
        """Read these sessions into their slots; who waits for one that cannot be read is told why."""
        self._sequence += 1
        began = self._clock.monotonic()
        for unread, error in await self._loader.load(slots, self._sequence):
            for part in self._scheduler.take(unread):
                self._refuse(part, error)
        self._metrics.observe_stage("load", self._clock.monotonic() - began)
        self._wake.set()

    # ---- admit: only what continues its session is run

    def _admit(self, parts: list[Part]) -> Batch | None:
        batch = Batch(parts)
        batch.epochs = self.slots.epoch[batch.slots]
        if batch.head.stateless:
            return batch
        heads, now_ms = self.slots.heads(batch.slots), int(self._clock.time() * 1000)
        fits = continues(batch, heads, self._layout, self._ownership, now_ms=now_ms)
        if not batch.head.commit:  # no compare-and-set will tell whether the slot is up to date: it is fresh, or named
            fits &= batch.afters.any(1) | (self.slots.read_at[batch.slots] > batch.sequences)
        if fits.all():
            return batch
        for place, block, row in batch.each():
            if not fits[place]:
                self._decide(block, row)
        return batch.only(fits) if fits.any() else None

    def _decide(self, block: Block, row: int) -> None:
        """One operation does not continue what is in its slot: answer it from the store's word, or ask for that."""
        rows, slot = np.array([row]), int(block.slots[row])
        owned = bool(self.slots.owned[slot])  # then the slot knows more than the store
        kept = self._checkpoints.reply(slot) if owned else self._loader.replies.get(slot)
        if kept is None or not (owned or self.slots.read_at[slot] > block.sequence):
            self.slots.give_up(rows * 0 + slot)
            self._redo(block, rows)
            return
        head = self.slots.headers[slot]
        digest = digests([array[row : row + 1] for array in block.inputs], np.array([block.salt], np.uint64))[0]
        now_ms = int(self._clock.time() * 1000)
        others = bool(self._ownership.others(head[None], now_ms)[0])
        error = judge(block, row, head, self._layout, digest=digest, others=others, now_ms=now_ms)
        if error is None and not (head["id"] == block.ids[row]).all():
            self.slots.give_up(rows * 0 + slot)
            self._redo(block, rows)
            return
        if error is None and (head["flags"] & record.REPLY_DROPPED or head["reply_tag"] != self._reply_tag):
            error = AlreadyApplied(
                "the operation was applied before, and its reply is not kept: it was too large, or of another version",
                position=str(head["position"]),
            )
        if error is not None:
            self._refuse(Part(block, rows), error)
            return
        self._repeat(block, row, head, kept)

    def _repeat(self, block: Block, row: int, head: Array, kept: bytes) -> None:
        """Answer a duplicate with the reply that was kept."""
        signature = self.model.signature
        outputs = [spec.dtype for spec in signature.outputs if block.kind is Kind.PREDICT]
        states = [spec.dtype for spec in signature.states if block.return_states]
        tensors = reply.unpack(kept, outputs + states)
        block.duplicates.add(row)
        block.answer(np.array([row]), tensors[: len(outputs)], tensors[len(outputs) :], head[None])
        self._settled(block, np.array([row]))

    # ---- run and commit

    async def _step_long(self, batch: Batch) -> None:
        try:
            await self._step(batch)
        finally:
            self._send()
            self._long = None
            self.slots.run_long(batch.slots, running=False)
            self._wake.set()

    async def _step(self, batch: Batch) -> None:
        """Run a batch and send its commit."""
        current = self._current(batch)
        if not current.all():
            if not current.any():
                return
            batch = batch.only(current)
        left = np.ones(len(batch), bool)
        try:
            for block in {block for block, _ in batch.parts if block.start}:
                self._send()
                block.given = await self._runner.start(block.start) | block.given
                block.start = []
            states = self._runner.gather(batch.slots)
            rebased = batch.give(states, self._axes)
            outcome = Outcome(self.model.signature, batch, await self._run(batch, states), rebased)
            for rows, each in outcome.by_length():
                self._finish(each)
                left &= ~rows
        except RecurraError as error:
            for part in batch.only(left).parts:
                self._refuse(part, error)
        except Exception as error:  # noqa: BLE001 # whatever the runtime raises is this batch's, not the server's
            batch = batch.only(left)  # what was sent is not run again
            if len(left) == 1:
                text = f"the model failed on this input: {error}; no timestep was consumed"
                self._refuse(batch.parts[0], RunFailed(text))
                return
            for place in range(len(batch)):  # each alone, so that only the bad ones fail
                await self._step(batch.only(np.arange(len(batch)) == place))

    def _current(self, batch: Batch) -> NDArray[np.bool_]:
        """Which rows still rest on what they were admitted to; the others are put back.

        A commit of theirs may have failed meanwhile: then they were to continue a state that never was.
        """
        current: NDArray[np.bool_] = self.slots.epoch[batch.slots] == batch.epochs
        if not current.all():
            for block, rows in batch.only(~current).parts:
                self._redo(block, rows)
        return current

    async def _run(self, batch: Batch, states: list[Array]) -> Step:
        """Run a batch on the device, a long chunk in pieces."""
        if batch.head.kind is not Kind.PREDICT:
            return Step([], states)
        began, timesteps = self._clock.monotonic(), batch.head.timesteps
        self._metrics.observe_stage("queue", began - batch.head.arrival)
        if timesteps <= PIECE or not self._cuttable:
            alone = len(self._busy) == len(batch.parts)
            running = self._runner.run(batch.inputs, states, batch.lengths, alone=alone)
            self._send()
            step = await running
        else:
            self._send()
            step = await run_long(self._runner, self.model.signature, batch, states)
        self._metrics.observe_stage("run", self._clock.monotonic() - began)
        self._metrics.observe_batch(len(batch))
        self._metrics.count_timesteps(len(batch) * timesteps if batch.lengths is None else int(batch.lengths.sum()))
        return step

    def _finish(self, outcome: Outcome) -> None:
        """Keep what a run gave: the new state in the slots, and on its way to the store."""
        began, finite = self._clock.monotonic(), outcome.finite()
        good = self._current(outcome.batch)
        for block, rows in outcome.batch.only(good & ~finite).parts if (good & ~finite).any() else ():
            text = "the model's new state is not finite on this input; no timestep was consumed"
            self._refuse(Part(block, rows), RunFailed(text))
        good &= finite
        if not good.any():
            return
        outcome = outcome.only(good)
        owned = self.slots.owned[outcome.batch.slots] & outcome.batch.head.checkpointed
        if owned.all() or not owned.any():
            self._keep(outcome, at_once=bool(owned[0]))
        else:
            self._keep(outcome.only(owned), at_once=True)
            self._keep(outcome.only(~owned), at_once=False)
        self._metrics.observe_stage("pack", self._clock.monotonic() - began)

    def _keep(self, outcome: Outcome, *, at_once: bool) -> None:
        """Answer a batch that changes nothing that is kept, or `at_once`; or send it to the store first."""
        batch, states, (outputs, told) = outcome.batch, outcome.step.states, outcome.told()
        if batch.head.stateless:
            self._answer(batch, outputs, told, self.slots.heads(batch.slots))
            return
        if not batch.head.commit:
            self._send()
            self._commits.hold(batch, outputs, told, outcome.rebased)
            return
        self._metrics.count_operations(_METRIC_KINDS[batch.head.kind], len(batch))
        if at_once:
            self._runner.scatter(batch.slots, states)
            before = self.slots.heads(batch.slots)
            headers = advanced(before, batch, outcome.rebased, now_ms=int(self._clock.time() * 1000))
            self._answer(batch, outputs, told, headers, self._checkpoints.take(batch, headers, outputs + told))
        else:
            self._unsent.append((self._commits.prepare(batch, outcome.rebased), outputs, told, states))
            self._runner.scatter(batch.slots, states)
            if batch.head.kind is Kind.END:  # what comes next under this name starts fresh
                self._runner.scatter(batch.slots, self._runner.gather(np.zeros(len(batch), np.intp)))

    def _send(self) -> None:
        """Send what was prepared: once the next batch is being run, or at once where there is none."""
        unsent, self._unsent = self._unsent, []
        for draft, outputs, states, state in unsent:
            try:
                self._commits.send(draft, outputs, states, self._runner.to_bytes(state))
            except Exception as error:  # noqa: BLE001 # such as MemoryError: the slots are ahead of the store
                _log.exception("commit.failed", model=self.model.name, error=error)
                self.slots.give_up(draft.batch.slots)
                for block, rows in draft.batch.parts:
                    self._redo(block, rows)
                continue
            if draft.mine.any():
                self._checkpoints.remember(draft.batch.slots, outputs + states)

    def _answer(
        self, batch: Batch, outputs: list[Array], states: list[Array], headers: Array, durable: Array | None = None
    ) -> None:
        """All of a batch is done; `durable`: the positions that the store has, None for the headers'."""
        at = 0
        for block, rows in batch.parts:
            mine = slice(at, at + len(rows))
            stored = None if durable is None else durable[mine]
            block.answer(rows, [o[mine] for o in outputs], [s[mine] for s in states], headers[mine], stored)
            at += len(rows)
            if not block.pending:
                self._busy.discard(block)
        self.slots.unpin(batch.slots)
        if not self._busy:
            self._idle.set()

    # ---- the end of an operation

    def _redo(self, block: Block, rows: Rows) -> None:
        """Decide these rows anew, from what the store says."""
        block.tries[rows] += 1
        for row in rows[block.tries[rows] > _MAX_TRIES].tolist():
            error = Contended("others kept writing the session; safe to retry", retry_after=0.05)
            self._refuse(Part(block, np.array([row])), error)
        rows = rows[block.tries[rows] <= _MAX_TRIES]
        if len(rows):
            self._scheduler.put_back(block, rows)
            self._wake.set()

    def _conflicted(self, block: Block, rows: Rows) -> None:
        self._metrics.count_conflicts(len(rows))
        self._redo(block, rows)

    def _refuse(self, part: Part, error: RecurraError) -> None:
        for row in part.rows.tolist():
            part.block.refuse(row, error)
        self._settled(*part)

    def _landed(self, flight: Flight) -> None:
        self._metrics.set_queue(self._scheduler.queued)
        self._metrics.set_live_sessions(len(self.slots))
        self._metrics.observe_stage("commit", self._clock.monotonic() - flight.started)
        self._wake.set()

    def _settled(self, block: Block, rows: Rows) -> None:
        self.slots.unpin(block.slots[rows])
        if not block.pending:
            self._busy.discard(block)
        if not self._busy:
            self._idle.set()
