"""The runner on host memory: numpy slabs for the states, the model's program for the run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.models import Program, Signature, Start
from recurra.server.engine.device import Device
from recurra.server.engine.seams import Step

Array = NDArray[Any]


class SlabRunner:
    """One slab a state, in the graph's own layout with slots along the batch axis: a gather is ready to be run.

    What was scattered last is written into the slabs when another batch comes: streams have the same batch again and
    again, which needs neither the write nor a gather.
    """

    def __init__(
        self,
        signature: Signature,
        program: Program,
        device: Device,
        *,
        slots: int,
        ragged: Program | None = None,
        start: Start | None = None,
    ) -> None:
        """`ragged`: runs batches with `lengths`."""
        self._states, self._program, self._ragged, self._start = signature.states, program, ragged, start
        self._device = device
        self._slabs = [
            np.zeros((*s.shape[: s.batch_axis], slots, *s.shape[s.batch_axis :]), s.dtype) for s in self._states
        ]
        self._rows_first = [
            (s.batch_axis, *(at for at in range(len(s.shape) + 1) if at != s.batch_axis)) for s in self._states
        ]
        self._last = np.zeros(0, np.intp)
        self._last_states: list[Array] = []
        self._written = True
        fresh = [np.expand_dims(state.fresh, state.batch_axis) for state in self._states]
        self.scatter(np.zeros(1, np.intp), fresh)

    def gather(self, slots: Array) -> list[Array]:
        if np.array_equal(slots, self._last):
            return [*self._last_states]
        self._write_last()
        return [slab.take(slots, s.batch_axis) for slab, s in zip(self._slabs, self._states, strict=True)]

    def scatter(self, slots: Array, states: Sequence[Array]) -> None:
        if not np.array_equal(slots, self._last):
            self._write_last()
        self._last, self._last_states, self._written = slots, [state.view() for state in states], False
        for state in self._last_states:
            state.flags.writeable = False

    def _write_last(self) -> None:
        if self._written:
            return
        for slab, state, spec in zip(self._slabs, self._last_states, self._states, strict=True):
            slab[(slice(None),) * spec.batch_axis + (self._last,)] = state
        self._written = True

    def run(
        self, inputs: Sequence[Array], states: Sequence[Array], lengths: Array | None = None, *, alone: bool = False
    ) -> asyncio.Future[Step]:
        program = self._program if lengths is None else self._ragged
        assert program is not None
        what = (id(program), len(inputs[0]).bit_length(), *(array.shape[1:] for array in inputs))
        return self._device.run(what, _step, program, inputs, states, lengths, at_once=alone)

    def start(self, inputs: Sequence[Array]) -> asyncio.Future[dict[int, Array]]:
        assert self._start is not None
        what = (id(self._start), *(array.shape for array in inputs))
        return self._device.run(what, self._start.run, inputs)

    def to_bytes(self, states: Sequence[Array]) -> NDArray[np.uint8]:
        count = states[0].shape[self._states[0].batch_axis]
        rows, at = np.empty((count, sum(spec.nbytes for spec in self._states)), np.uint8), 0
        for state, spec, axes in zip(states, self._states, self._rows_first, strict=True):
            columns = rows[:, at : at + spec.nbytes].view(spec.dtype)
            columns.reshape(count, *spec.shape)[...] = state.transpose(axes)
            at += spec.nbytes
        return rows

    def from_bytes(self, rows: NDArray[np.uint8]) -> list[Array]:
        states, at = [], 0
        for spec in self._states:
            flat = np.ascontiguousarray(rows[:, at : at + spec.nbytes]).view(spec.dtype)
            states.append(np.moveaxis(flat.reshape(len(rows), *spec.shape), 0, spec.batch_axis))
            at += spec.nbytes
        return states


def _step(program: Program, inputs: Sequence[Array], states: Sequence[Array], lengths: Array | None) -> Step:
    return Step(*program.run(inputs, states, lengths))
