"""A step of the model: a batch is run on the device, and what it gave is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.models import Model
from recurra.server.engine.batch import Batch
from recurra.server.engine.chunks import PIECE, cuttable, run_long
from recurra.server.engine.line import Line
from recurra.server.engine.operation import Kind
from recurra.server.engine.outbox import Outbox
from recurra.server.engine.outcome import Outcome
from recurra.server.engine.pending import Pending
from recurra.server.engine.seams import Clock, Runner, States, Step
from recurra.server.telemetry import ModelMetrics
from recurra.wire.errors import RecurraError, RunFailed

Array = NDArray[Any]


class Stepper:
    """Runs batches, one after another."""

    def __init__(
        self,
        model: Model,
        runner: Runner,
        clock: Clock,
        *,
        pending: Pending,
        line: Line,
        outbox: Outbox,
        metrics: ModelMetrics,
    ) -> None:
        self._signature, self._runner, self._clock = model.signature, runner, clock
        self._pending, self._line, self._outbox, self._metrics = pending, line, outbox, metrics
        self._cuttable = cuttable(model)

    def long(self, batch: Batch) -> bool:
        """Whether it is run in pieces, with others between."""
        return batch.head.timesteps > PIECE and self._cuttable

    @property
    def longest(self) -> int | None:
        """The longest chunk that may be run while one is run in pieces; None: any."""
        return PIECE if self._cuttable else None

    async def step(self, batch: Batch) -> None:
        """Run a batch and keep what it gave. A run that fails is repeated row by row: the bad ones fail alone."""
        current = self._pending.current(batch)
        if not current.all():
            if not current.any():
                return
            batch = batch.only(current)
        left = np.ones(len(batch), bool)
        try:
            for block in {block for block, _ in batch.parts if block.start}:
                self._line.send()
                block.given = await self._runner.start(block.start) | block.given
                block.start = []
            began = self._clock.monotonic()
            given, rebased = batch.given()
            slots = np.where(batch.anew, 0, batch.slots) if batch.anew.any() else batch.slots  # 0 is the fresh state
            states = self._runner.gather(slots, given)
            outcome = Outcome(self._signature, batch, await self._run(batch, states, began), rebased)
            for rows, each in outcome.by_length():
                self._outbox.keep(each)
                left &= ~rows
        except RecurraError as error:
            for part in batch.only(left).parts:
                self._pending.refuse(part, error)
        except Exception as error:  # noqa: BLE001 # whatever the runtime raises is this batch's, not the server's
            batch = batch.only(left)  # what was sent is not run again
            if len(left) == 1:
                text = f"the model failed on this input: {error}; no timestep was consumed"
                self._pending.refuse(batch.parts[0], RunFailed(text))
                return
            for place in range(len(batch)):
                await self.step(batch.only(np.arange(len(batch)) == place))

    async def _run(self, batch: Batch, states: States, gathered_at: float) -> Step:
        step = (
            Step([], states) if batch.head.kind is not Kind.PREDICT else await self._predict(batch, states, gathered_at)
        )
        if batch.head.return_states and (coming := step.states.fetch()):
            await coming
        return step

    async def _predict(self, batch: Batch, states: States, gathered_at: float) -> Step:
        began, timesteps = self._clock.monotonic(), batch.head.timesteps
        fetch = self._outbox.reads(batch)
        self._metrics.observe_stage("queue", began - batch.head.arrival)
        if self.long(batch):
            self._line.send()
            step = await run_long(self._runner, self._signature, batch, states, fetch=fetch)
        else:
            alone = len(self._pending) == len(batch.parts)
            begun = self._runner.run(batch.inputs, states, batch.lengths, fetch=fetch, alone=alone)
            self._line.send()
            step = await begun
        running = self._clock.monotonic() - began
        self._metrics.observe_stage("run", running)
        self._metrics.statistics.ran(
            len(batch),
            at=self._clock.time(),
            waited=sum((began - block.arrival) * len(rows) for block, rows in batch.parts),
            gathering=began - gathered_at,
            running=running,
        )
        self._metrics.observe_batch(len(batch))
        self._metrics.count_timesteps(len(batch) * timesteps if batch.lengths is None else int(batch.lengths.sum()))
        return step
