"""What a model takes, gives and remembers, as its callers see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: the graph's name of it.
        dtype: numpy dtype, little-endian.
        shape: one timestep of one session, without batch and time axes; None for a size that may be any.
        has_time_axis: a chunk of T timesteps is (N, T, *shape); without, it is (N, *shape), once a chunk.
        bounds: smallest and largest value that an integer input may hold, None where anything goes.

    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    has_time_axis: bool = True
    bounds: tuple[int, int] | None = None


@dataclass(frozen=True)
class StateSpec:
    """One hidden or cell state, or context samples.

    Attributes:
        name: stable and unique in the model, "lstm_1/h".
        layer: the layer that owns it, "lstm_1".
        dtype: numpy dtype, little-endian.
        shape: of one session, without the batch axis.
        batch_axis: where the graph wants the batch axis among the others.
        fresh: what a new session starts from, of shape `shape`.

    """

    name: str
    layer: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    batch_axis: int
    fresh: Array = field(repr=False, compare=False)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one session's tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @cached_property
    def rows_first(self) -> tuple[int, ...]:
        """The graph's axes in the order (N, *shape)."""
        return self.batch_axis, *(axis for axis in range(len(self.shape) + 1) if axis != self.batch_axis)


@dataclass(frozen=True)
class Signature:
    """A model's inputs and outputs (states and constants are not among them) and its states, in a fixed order.

    Attributes:
        chunk_sizes: how many timesteps a chunk may have; empty for any number.

    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]
    chunk_sizes: tuple[int, ...] = ()

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of one session's whole state."""
        return sum(state.nbytes for state in self.states)
