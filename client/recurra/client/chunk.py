"""One session's chunk: from a caller's arrays to tensors, and back from tensors to arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from recurra.client.arrays import Array, Layout
from recurra.client.model import Model
from recurra.v1 import tensor_pb2
from recurra.wire.errors import InvalidArgument
from recurra.wire.tensors import to_array, to_tensor

Outputs = Array | dict[str, Array]
"""One array, of a model with one output, or arrays by output name."""
Prediction = Outputs | tuple[Outputs, dict[str, Array]]
"""Outputs; with return_states=True, also the states by name."""


def tensors(layout: Layout, *, row: bool = False) -> list[tensor_pb2.Tensor]:
    """The inputs as messages; `row`: with a batch axis of 1."""
    return [to_tensor(array[None] if row else array, name) for name, array in layout.inputs.items()]


def to_mask(mask: ArrayLike | None, chunk: Layout) -> bytes:
    """T bytes, 0 or 1. Raises InvalidArgument for a mask that is not (T,) booleans."""
    if mask is None:
        return b""
    array = np.asarray(mask)
    if array.shape != (chunk.timesteps,) or chunk.single:
        raise InvalidArgument(f"the mask has shape {array.shape}; it must be (T,), for a chunk of {chunk.timesteps}")
    return array.astype(bool).tobytes()


def to_outputs(
    model: Model, outputs: Iterable[tensor_pb2.Tensor], *, single: bool, sequences: bool, row: bool = False
) -> Outputs:
    """The caller's outputs, writable.

    Args:
        single: drop the time axis.
        sequences: outputs with a time axis have all timesteps, not only the last.
        row: drop a batch axis of 1.
    """
    timed = {spec.name for spec in model.outputs if spec.has_time_axis}
    arrays: dict[str, Array] = {}
    for tensor in outputs:
        array = to_array(tensor)
        array = array[0] if row else array
        if single and sequences and tensor.name in timed:
            array = array[0]
        arrays[tensor.name] = array.copy()
    return one_or_all(arrays)


def one_or_all(outputs: dict[str, Array]) -> Outputs:
    """The array of a single output; otherwise all, by name."""
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def to_states(states: Iterable[tensor_pb2.Tensor], *, row: bool = False) -> dict[str, Array]:
    """States by name, writable; `row`: drop a batch axis of 1."""
    arrays = {tensor.name: to_array(tensor) for tensor in states}
    return {name: (array[0] if row else array).copy() for name, array in arrays.items()}


def both(outputs: Outputs, states: Mapping[str, Array] | None) -> Prediction:
    """What predict returns: outputs, and states where they were asked for."""
    return outputs if states is None else (outputs, dict(states))
