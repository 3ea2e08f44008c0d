"""What a run gave to a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.models import Signature
from recurra.server.engine.batch import Batch
from recurra.server.engine.seams import Step

Array = NDArray[Any]


@dataclass(frozen=True)
class Outcome:
    """A batch of N operations and its run.

    Attributes:
        rebased: (N,) bool, who brought a state of his own to start from.
    """

    signature: Signature
    batch: Batch
    step: Step
    rebased: NDArray[np.bool_]

    def only(self, rows: NDArray[np.bool_]) -> Outcome:
        """Of some rows, (N,) bool, all of one length; without their padding."""
        if rows.all() and self.batch.lengths is None:
            return self
        batch, outputs = self.batch.only(rows), [output[rows] for output in self.step.outputs]
        if self.batch.lengths is not None:
            timed, count = [spec.has_time_axis for spec in self.signature.outputs], batch.head.timesteps
            outputs = [o[:, :count] if has_time else o for o, has_time in zip(outputs, timed, strict=True)]
        step = Step(outputs, self.step.states.only(rows))
        return replace(self, batch=batch, step=step, rebased=self.rebased[rows])

    def by_length(self) -> Iterator[tuple[NDArray[np.bool_], Outcome]]:
        """The rows of each length, (N,) bool, and what they got."""
        lengths = self.batch.lengths
        if lengths is None:
            yield np.ones(len(self.batch), bool), self
            return
        for length in np.unique(lengths):
            yield lengths == length, self.only(lengths == length)

    def told(self) -> tuple[list[Array], list[Array]]:
        """What clients get: outputs, of all timesteps or the last, and the states if asked for; each (N, ...)."""
        head, outputs = self.batch.head, self.step.outputs
        if not head.return_sequences and outputs:
            timed = [spec.has_time_axis for spec in self.signature.outputs]
            outputs = [o[:, -1] if has_time else o for o, has_time in zip(outputs, timed, strict=True)]
        return outputs, self.step.states.tensors() if head.return_states else []
