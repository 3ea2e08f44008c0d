"""What a run gave, on its way out: into the slots, to the clients, and to the store."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine.batch import Batch
from recurra.server.engine.checkpoints import Checkpoints
from recurra.server.engine.commits import Commits
from recurra.server.engine.heads import advanced
from recurra.server.engine.operation import Kind
from recurra.server.engine.outcome import Outcome
from recurra.server.engine.pending import Pending
from recurra.server.engine.seams import Clock, Runner
from recurra.server.engine.slots import Slots
from recurra.server.telemetry import Kind as MetricKind
from recurra.server.telemetry import ModelMetrics
from recurra.wire.errors import RunFailed

Array = NDArray[Any]

_METRIC_KINDS: Final[dict[Kind, MetricKind]] = {
    Kind.PREDICT: "predict",
    Kind.RESET: "reset",
    Kind.SET: "set_state",
    Kind.END: "end",
}


class Outbox:
    """Keeps outcomes. What is committed is in line from here on, and sent while the next batch is being run."""

    def __init__(
        self,
        slots: Slots,
        runner: Runner,
        clock: Clock,
        *,
        pending: Pending,
        commits: Commits,
        checkpoints: Checkpoints,
        metrics: ModelMetrics,
    ) -> None:
        self._slots, self._pending, self._clock = slots, pending, clock
        self._runner, self._commits, self._checkpoints, self._metrics = runner, commits, checkpoints, metrics

    def reads(self, batch: Batch) -> bool:
        """Whether a batch's new states will be read: by clients, or for the store."""
        head = batch.head
        if head.return_states or head.stateless or not head.commit:
            return head.return_states
        return not (head.checkpointed and self._slots.owned[batch.slots].all())

    def keep(self, outcome: Outcome) -> None:
        """Keep what is finite and still rests on what was; the rest is refused, or decided anew."""
        began, finite = self._clock.monotonic(), outcome.step.states.finite()
        good = self._pending.current(outcome.batch)
        for part in outcome.batch.only(good & ~finite).parts if (good & ~finite).any() else ():
            text = "the model's new state is not finite on this input; no timestep was consumed"
            self._pending.refuse(part, RunFailed(text))
        good &= finite
        if not good.any():
            return
        outcome = outcome.only(good)
        # What names nothing takes what is there, and only the store knows that: another replica may have the session.
        named = outcome.batch.afters.any(1)
        owned = self._slots.owned[outcome.batch.slots] & outcome.batch.head.checkpointed & named
        if owned.all() or not owned.any():
            self._keep(outcome, at_once=bool(owned[0]))
        else:
            self._keep(outcome.only(owned), at_once=True)
            self._keep(outcome.only(~owned), at_once=False)
        packing = self._clock.monotonic() - began
        self._metrics.observe_stage("pack", packing)
        if outcome.batch.head.kind is Kind.PREDICT:
            self._metrics.statistics.packed(len(outcome.batch), packing)

    def _keep(self, outcome: Outcome, *, at_once: bool) -> None:
        """Answer a batch that changes nothing that is kept, or `at_once`; or have it sent to the store first."""
        batch, states, (outputs, told) = outcome.batch, outcome.step.states, outcome.told()
        if batch.head.stateless:
            self._pending.answer(batch, outputs, told, self._slots.heads(batch.slots))
            return
        if not batch.head.commit:
            self._commits.hold(batch, outputs, told, outcome.rebased)
            return
        self._metrics.count_operations(_METRIC_KINDS[batch.head.kind], len(batch))
        if at_once:
            self._runner.scatter(batch.slots, states)
            before = self._slots.heads(batch.slots)
            headers = advanced(before, batch, outcome.rebased, now_ms=int(self._clock.time() * 1000))
            durable = self._checkpoints.take(batch, headers, outputs + told)
            self._pending.answer(batch, outputs, told, headers, durable)
        else:
            if self._commits.prepare(batch, outcome.rebased, states, outputs, told).any():
                self._checkpoints.remember(batch.slots, outputs + told)
            self._runner.scatter(batch.slots, states)
            if batch.head.closes:  # what comes next under this name starts fresh
                self._runner.scatter(batch.slots, self._runner.gather(np.zeros(len(batch), np.intp)))
