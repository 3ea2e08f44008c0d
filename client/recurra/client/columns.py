"""A batch's arrays as columns of k rows, and a frame's results as arrays of k rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recurra.client.arrays import Array, Inputs, lay_out
from recurra.client.chunk import Outputs, one_or_all
from recurra.client.model import Model
from recurra.client.ragged import Ragged, from_lengths, from_mask
from recurra.v1 import inference_pb2, tensor_pb2
from recurra.wire.errors import InvalidArgument
from recurra.wire.tensors import to_array, to_tensor


@dataclass(frozen=True)
class Columns:
    """T timesteps of each of k rows.

    Attributes:
        inputs: by name, (k, T, *shape) where the input has a time axis, those that count in front.
        timesteps: T.
        single: they were given as one timestep each, so outputs are given back without the time axis.
        ragged: which timesteps count; None: all.
        rows: those that have any timestep.

    """

    inputs: dict[str, Array]
    timesteps: int
    single: bool
    ragged: Ragged | None
    rows: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.uint32] | None:
        """(len(rows),); None: all T."""
        return None if self.ragged is None else self.ragged.lengths[self.rows]

    def tensors(self) -> list[tensor_pb2.Tensor]:
        """The inputs of `rows` as messages."""
        whole = all(len(array) == len(self.rows) for array in self.inputs.values())
        return [to_tensor(array if whole else array[self.rows], name) for name, array in self.inputs.items()]


def to_columns(
    model: Model, x: Inputs, k: int, *, lengths: ArrayLike | None = None, mask: ArrayLike | None = None
) -> Columns:
    """`x` as the model takes it: (k, *shape), one timestep a row, or (k, T, *shape).

    Raises InvalidArgument for names, dtypes or shapes that do not fit.
    """
    laid = lay_out(model, x, (k,))
    if lengths is not None and mask is not None:
        raise InvalidArgument("give lengths or a mask, not both")
    ragged = None
    if lengths is not None:
        ragged = from_lengths(lengths, k, laid.timesteps)
    elif mask is not None:
        ragged = from_mask(mask, k, laid.timesteps)
    inputs, rows = laid.inputs, np.arange(k)
    if ragged is not None:
        inputs = {name: ragged.pack(array) if name in laid.timed else array for name, array in inputs.items()}
        rows = np.flatnonzero(ragged.lengths)
    return Columns(inputs, laid.timesteps, laid.single, ragged, rows)


class Gathered(Protocol):
    """Who takes what comes back."""

    def put(self, result: inference_pb2.FrameResult, rows: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Take over the result's rows at `places`, which are those of `rows`."""
        ...


class Gathering:
    """What comes back for k rows, from several results; rows of which nothing came stay zeros."""

    def __init__(self, k: int, timesteps: int, timed: frozenset[str]) -> None:
        """`timed`: the outputs that have all of the `timesteps`, those after a row's length left out."""
        self._k, self._timesteps, self._timed = k, timesteps, timed
        self.outputs: dict[str, Array] = {}
        self.states: dict[str, Array] = {}

    def put(self, result: inference_pb2.FrameResult, rows: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Take over the result's rows at `places` as the batch's `rows`."""
        for tensor in result.states:
            self._put(self.states, tensor.name, to_array(tensor), rows, places)
        for tensor in result.outputs:
            self._put(self.outputs, tensor.name, to_array(tensor), rows, places, timed=tensor.name in self._timed)

    def _put(
        self,
        into: dict[str, Array],
        name: str,
        array: Array,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        *,
        timed: bool = False,
    ) -> None:
        shape = (self._k, self._timesteps, *array.shape[2:]) if timed else (self._k, *array.shape[1:])
        if name not in into and len(rows) == self._k and array.shape == shape:
            into[name] = array.copy()
            return
        whole = into.setdefault(name, np.zeros(shape, array.dtype))
        if timed:
            whole[rows, : array.shape[1]] = array[places]
        else:
            whole[rows] = array[places]

    def as_given(self, columns: Columns) -> Outputs | None:
        """The outputs as the inputs were given: spread over the mask, without the time axis for single timesteps."""
        outputs = dict(self.outputs)
        for name in self._timed & outputs.keys():
            if columns.ragged is not None:
                outputs[name] = columns.ragged.spread(outputs[name])
            if columns.single:
                outputs[name] = outputs[name][:, 0]
        return one_or_all(outputs) if outputs else None
