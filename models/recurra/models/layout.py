"""How a graph lays out its tensors: the map between what callers see and what the graph wants."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recurra.models.signature import Array, Signature, StateSpec, TensorSpec


@dataclass(frozen=True)
class Port:
    """An input or output of the graph.

    Attributes:
        spec: as callers see it.
        batch_axis, time_axis: in the graph; None where it has none.
        context: an input's samples of the previous chunk that are put in front of it.
        skip: an output's leading timesteps that belong to the context.

    """

    spec: TensorSpec
    batch_axis: int | None
    time_axis: int | None
    context: int = 0
    skip: int = 0

    @cached_property
    def order(self) -> tuple[int, ...] | None:
        """The axes of (N, T, ...) in the graph's order; None where the order is the same.

        T is left out without a time axis. A graph without a batch axis takes (1, T, ...) with the first axis first.
        """
        batch = self.batch_axis or 0
        time = self.time_axis
        if time is not None and self.batch_axis is None:
            time += 1
        front = {batch: 0} | ({time: 1} if time is not None else {})
        rank = len(front) + len(self.spec.shape)
        rest = iter(range(len(front), rank))
        order = tuple(front[axis] if axis in front else next(rest) for axis in range(rank))
        return None if order == tuple(range(rank)) else order

    @cached_property
    def _inverse(self) -> tuple[int, ...] | None:
        order = self.order
        return None if order is None else tuple(order.index(axis) for axis in range(len(order)))

    def to_graph(self, array: Array) -> Array:
        """(N, T, ...) or (N, ...) in the graph's layout, C-contiguous."""
        if self.order is not None:
            array = array.transpose(self.order)
        if self.batch_axis is None:
            array = array[0]
        return np.ascontiguousarray(array).reshape(array.shape)  # numpy makes a scalar (1,)

    def from_graph(self, array: Array) -> Array:
        """(N, T, ...) or (N, ...), a view."""
        if self.batch_axis is None:
            array = array[None]
        if self._inverse is not None:
            array = array.transpose(self._inverse)
        return array[:, self.skip :] if self.skip else array


@dataclass(frozen=True)
class StatePort:
    """A state of the graph.

    Attributes:
        input, output: the graph's names.
        batched: the graph has the batch axis; else callers' batch axis, 0 of size 1, is taken away.

    """

    spec: StateSpec
    input: str
    output: str
    batched: bool = True


@dataclass(frozen=True)
class Constant:
    """A graph input that callers do not see.

    Attributes:
        value: fed at every call, of one session where there is a batch axis.
        batch_axis: where the value is repeated for each session; None for nowhere.
        counts: the value is the number of timesteps of each session's chunk.

    """

    name: str
    value: Array
    batch_axis: int | None = None
    counts: bool = False


@dataclass(frozen=True)
class Layout:
    """All of a graph's tensors.

    Attributes:
        stepwise: the graph takes one timestep a call.
        batchable: it takes more than one session a call.

    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[StatePort, ...]
    constants: tuple[Constant, ...] = ()
    stepwise: bool = False
    batchable: bool = True
    chunk_sizes: tuple[int, ...] = ()

    def signature(self) -> Signature:
        """As callers see it. Context samples are the last states, in the order of their inputs."""
        contexts = tuple(context(port, stepwise=self.stepwise) for port in self.inputs if port.context)
        return Signature(
            inputs=tuple(port.spec for port in self.inputs),
            outputs=tuple(port.spec for port in self.outputs),
            states=tuple(port.spec for port in self.states) + contexts,
            chunk_sizes=self.chunk_sizes,
        )


def context_axis(port: Port, *, stepwise: bool) -> int:
    """The axis of (N, T, ...) or (N, ...) that context is put in front along: time, else the last."""
    return 1 if port.spec.has_time_axis and not stepwise else -1


def context(port: Port, *, stepwise: bool) -> StateSpec:
    """The state that holds an input's context, (N, context, *shape) or (N, ..., context)."""
    shape = tuple(size or 0 for size in port.spec.shape)
    along_time = context_axis(port, stepwise=stepwise) == 1
    shape = (port.context, *shape) if along_time else (*shape[:-1], port.context)
    name, dtype = port.spec.name, port.spec.dtype
    return StateSpec(f"{name}/context", name, dtype, shape, 0, np.zeros(shape, dtype))
