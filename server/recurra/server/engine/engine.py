"""The engine of one model: takes blocks of operations, makes batches, runs them, commits them, answers them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.models import Model
from recurra.server.engine.admission import Admission
from recurra.server.engine.batch import Batch
from recurra.server.engine.checkpoints import Checkpoints
from recurra.server.engine.chunks import PIECE
from recurra.server.engine.commits import Commits
from recurra.server.engine.flight import Flight
from recurra.server.engine.loader import Loader
from recurra.server.engine.operation import Block, Rows
from recurra.server.engine.outbox import Outbox
from recurra.server.engine.ownership import Ownership
from recurra.server.engine.pending import Pending
from recurra.server.engine.reading import Reader
from recurra.server.engine.scheduler import Scheduler
from recurra.server.engine.seams import Clock, Runner, Store
from recurra.server.engine.slots import Slots
from recurra.server.engine.stepper import Stepper
from recurra.server.store import record
from recurra.server.telemetry import ModelMetrics
from recurra.wire.errors import DeadlineExceeded, Draining, InvalidArgument, Overloaded

Array = NDArray[Any]

_LEAST_RETRY_SECONDS, _MOST_RETRY_SECONDS = 0.05, 5.0
_QUIET_TURNS, _MOST_TURNS, _ENOUGH = 48, 512, 32  # turns of the event loop, and operations: see Engine._arrive


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

    An operation's way: submit, (load the session), next batch, admit, step, keep, commit. Answers are in the block.
    """

    def __init__(
        self, model: Model, runner: Runner, store: Store, clock: Clock, metrics: ModelMetrics, *, limits: Limits
    ) -> None:
        self.model, self._clock, self._metrics, self._limits = model, clock, metrics, limits
        self.statistics = metrics.statistics
        self.reader = Reader(store, model.name)
        self.slots = slots = Slots(limits.slots, record.key_prefix("default", model.name))
        self._scheduler = Scheduler(max_batch=model.max_batch, slots=limits.slots + 1)
        self._pending = pending = Pending(slots, self._scheduler, clock, metrics)
        ownership = Ownership(limits.checkpoint_seconds)
        self._commits = Commits(model, slots, store, clock, ownership=ownership, pending=pending, landed=self._landed)
        self._checkpoints = checkpoints = Checkpoints(slots, runner, self._commits, clock, ownership)
        self._loader = Loader(slots, runner, store, model.signature.state_bytes)
        self._admission = Admission(
            model,
            slots,
            clock,
            pending=pending,
            ownership=ownership,
            loader=self._loader,
            commits=self._commits,
            checkpoints=checkpoints,
        )
        outbox = Outbox(
            slots, runner, clock, pending=pending, commits=self._commits, checkpoints=checkpoints, metrics=metrics
        )
        self._stepper = Stepper(
            model, runner, clock, pending=pending, line=self._commits.line, outbox=outbox, metrics=metrics
        )
        self._stateless = np.arange(limits.slots + 1) == 0  # ready while the store is behind
        self._sequence = 0
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
                f"{self._scheduler.queued} operations wait for model '{self.model.name}' already",
                retry_after=self._until_there_is_room(),
            )
        if self.model.ragged is not None and 1 < block.timesteps <= PIECE:
            block.key = self._ragged_key(block)
        self._sequence += 1
        block.sequence, block.arrival = self._sequence, self._clock.monotonic()
        self._pending.add(block)

    def _until_there_is_room(self) -> float:
        """Seconds: about as long as the first in the queue has waited, the next ones will."""
        return min(max(self._clock.monotonic() - self._scheduler.since, _LEAST_RETRY_SECONDS), _MOST_RETRY_SECONDS)

    def _ragged_key(self, block: Block) -> Hashable:
        """Chunks go together up to the next power of two: at most half of what is run is padding."""
        timed = zip(block.inputs, self.model.signature.inputs, strict=True)
        shapes = [array.shape[1 + spec.has_time_axis :] for array, spec in timed]
        return block.key_for(1 << (block.timesteps - 1).bit_length(), shapes)

    def cancel(self, block: Block) -> None:
        """Nobody waits for this block any more: what was not started is not run. A commit that was sent goes on."""
        block.abandoned = True
        for part in self._scheduler.withdraw(block):
            self._pending.refuse(part, DeadlineExceeded("cancelled before it was started"))

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
        await self._pending.none()
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
                        self._commits.line.send()
                        await asyncio.sleep(0)
        finally:
            self._draining = True
            self.slots.owned[:] = False  # what is not written is lost: nobody waits for its way to the store
            self._pending.refuse_all(  # a retry tells whether it was applied
                Draining("this replica was stopped: retry, another one serves")
            )

    # ---- one turn: load what is cold, run what is ready

    async def _turn(self, tasks: asyncio.TaskGroup) -> None:
        if self._scheduler.queued < _ENOUGH:  # else the next batch begins now, and this is done meanwhile
            self._commits.line.send()
        await self._arrive()  # from here to the wait for a wake-up there is no other: none is missed
        cold = self.slots.to_load()
        if len(cold):
            tasks.create_task(self._load(cold), name=f"load for {self.model.name}")
        longest = (self._long and self._stepper.longest) or sys.maxsize
        ready, at_once = self._ready()
        parts, late = self._scheduler.next(self._clock.monotonic(), ready, at_once, longest=longest)
        for part in late:
            self._pending.refuse(part, DeadlineExceeded("its deadline passed in the queue"))
        batch = self._admission.admit(parts) if parts else None
        if batch is not None:
            if self._stepper.long(batch):
                self._commits.line.send()
                self.slots.run_long(batch.slots, running=True)
                self._long = tasks.create_task(self._step_long(batch), name=f"long chunk for {self.model.name}")
            else:
                await self._stepper.step(batch)
            return
        idle = not parts and not late
        if idle:
            self._pending.wake.clear()
        self._commits.line.send()  # which may make room for more
        if idle:
            await self._pending.wake.wait()

    def _ready(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which slots may be run, (slots,) bool: for what is committed before it is answered, and for the rest."""
        slots, behind = self.slots, self._commits.behind
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
            alone = len(self._pending) < 2  # noqa: PLR2004
            if alone or quiet == _QUIET_TURNS or not 0 < self._scheduler.queued < _ENOUGH:
                break
            before = self._sequence
            os.sched_yield()  # gRPC's own thread brings the calls; where cores are short it would not get one
            await asyncio.sleep(0)
            quiet = quiet + 1 if before == self._sequence else 0

    async def _load(self, slots: Rows) -> None:
        """Read these sessions into their slots; who waits for one that cannot be read is told why."""
        await self._commits.line.until_clear(slots)
        self._sequence += 1
        began = self._clock.monotonic()
        for unread, error in await self._loader.load(slots, self._sequence):
            for part in self._scheduler.take(unread):
                self._pending.refuse(part, error)
        self._metrics.observe_stage("load", self._clock.monotonic() - began)
        self._pending.wake.set()

    async def _step_long(self, batch: Batch) -> None:
        try:
            await self._stepper.step(batch)
        finally:
            self._commits.line.send()
            self._long = None
            self.slots.run_long(batch.slots, running=False)
            self._pending.wake.set()

    def _landed(self, flight: Flight) -> None:
        self._metrics.set_queue(self._scheduler.queued)
        self._metrics.set_live_sessions(len(self.slots))
        self._metrics.observe_stage("commit", self._clock.monotonic() - flight.started)
        self._pending.wake.set()
