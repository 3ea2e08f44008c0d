"""The runner on host memory: numpy slabs for the states, the model's program for the run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recurra.models import Program, Signature, Start, StateSpec
from recurra.server.engine.device import Device
from recurra.server.engine.rows import joined, tensors
from recurra.server.engine.seams import Given, States, Step

Array = NDArray[Any]
Specs = tuple[StateSpec, ...]


class HostStates:
    """States on the host.

    Attributes:
        arrays: in the signature's order and the graph's layout, batch axis N; read-only where they are current.
    """

    __slots__ = ("_specs", "arrays")

    def __init__(self, specs: Specs, arrays: Iterable[Array]) -> None:
        self._specs, self.arrays = specs, tuple(arrays)

    def __len__(self) -> int:
        return self.arrays[0].shape[self._specs[0].batch_axis] if self.arrays else 0

    def only(self, rows: NDArray[np.bool_]) -> Self:
        each = zip(self.arrays, self._specs, strict=True)
        return type(self)(self._specs, [array.compress(rows, spec.batch_axis) for array, spec in each])

    def finite(self) -> NDArray[np.bool_]:
        finite = np.ones(len(self), bool)
        for array, spec in zip(self.arrays, self._specs, strict=True):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                finite &= np.isfinite(array.transpose(spec.rows_first)).reshape(len(finite), -1).all(1)
        return finite

    def fetch(self) -> None:
        """They are there."""

    def tensors(self) -> list[Array]:
        return [array.transpose(spec.rows_first) for array, spec in zip(self.arrays, self._specs, strict=True)]

    def to_bytes(self) -> NDArray[np.uint8]:
        return joined(self._specs, self.tensors())


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
        self._specs, self._program, self._ragged, self._start = signature.states, program, ragged, start
        self._device = device
        self._slabs = [
            np.zeros((*s.shape[: s.batch_axis], slots, *s.shape[s.batch_axis :]), s.dtype) for s in self._specs
        ]
        self._last, self._states = np.zeros(0, np.intp), HostStates(self._specs, [])
        self._written = True
        fresh = [np.expand_dims(spec.fresh, spec.batch_axis) for spec in self._specs]
        self.scatter(np.zeros(1, np.intp), HostStates(self._specs, fresh))

    def gather(self, slots: Array, given: Sequence[Given] = ()) -> HostStates:
        if not np.array_equal(slots, self._last):
            self._write_last()
            taken = [slab.take(slots, spec.batch_axis) for slab, spec in zip(self._slabs, self._specs, strict=True)]
        elif given:
            taken = [array.copy() for array in self._states.arrays]
        else:
            return self._states
        states = HostStates(self._specs, taken)
        if given:
            tensors = states.tensors()
            for index, rows, values in given:
                tensors[index][rows] = values
        return states

    def scatter(self, slots: Array, states: States) -> None:
        assert isinstance(states, HostStates)
        if not np.array_equal(slots, self._last):
            self._write_last()
        self._last, self._written = slots, False
        self._states = HostStates(self._specs, [array.view() for array in states.arrays])
        for array in self._states.arrays:
            array.flags.writeable = False

    def _write_last(self) -> None:
        if self._written:
            return
        for slab, array, spec in zip(self._slabs, self._states.arrays, self._specs, strict=True):
            slab[(slice(None),) * spec.batch_axis + (self._last,)] = array
        self._written = True

    def load(self, slots: Array, rows: NDArray[np.uint8]) -> None:
        each = zip(tensors(self._specs, rows), self._specs, strict=True)
        arrays = [np.moveaxis(np.ascontiguousarray(tensor), 0, spec.batch_axis) for tensor, spec in each]
        self.scatter(slots, HostStates(self._specs, arrays))

    def run(
        self,
        inputs: Sequence[Array],
        states: States,
        lengths: Array | None = None,
        *,
        fetch: bool = True,
        alone: bool = False,
    ) -> asyncio.Future[Step]:
        del fetch  # they are there
        assert isinstance(states, HostStates)
        program = self._program if lengths is None else self._ragged
        assert program is not None
        what = (id(program), len(inputs[0]).bit_length(), *(array.shape[1:] for array in inputs))
        return self._device.run(what, self._step, program, inputs, states.arrays, lengths, at_once=alone)

    def _step(self, program: Program, inputs: Sequence[Array], states: Sequence[Array], lengths: Array | None) -> Step:
        outputs, news = program.run(inputs, states, lengths)
        return Step(outputs, HostStates(self._specs, news))

    def start(self, inputs: Sequence[Array]) -> asyncio.Future[dict[int, Array]]:
        assert self._start is not None
        what = (id(self._start), *(array.shape for array in inputs))
        return self._device.run(what, self._start.run, inputs)
