"""Chunks of many sessions as columns of one frame, and its result as each one's outputs.

Nothing here is done with numpy once a chunk but copying its input, and its output: bytes are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from recurra.client.arrays import Array, Inputs, lay_out
from recurra.client.chunk import Outputs, one_or_all
from recurra.client.frames import columns
from recurra.client.model import Model
from recurra.v1 import inference_pb2, tensor_pb2
from recurra.wire.tensors import code_of, to_array

Answer = Outputs | Exception


class Column(NamedTuple):
    """One input of a frame. `shape`: without rows and timesteps; `step_bytes`: of one timestep."""

    name: str
    dtype: tensor_pb2.DataType.ValueType
    shape: tuple[int, ...]
    timed: bool
    step_bytes: int


@dataclass(frozen=True, eq=False)
class Form:
    """What the chunks of one frame have in common: their columns, and about how many timesteps they have."""

    columns: tuple[Column, ...]


class Chunk(NamedTuple):
    """T timesteps of a session's input, copied.

    Attributes:
        data: C-contiguous, by input.
        single: it was given as one timestep, without the time axis.
        nbytes: what its data take.

    """

    form: Form
    data: tuple[bytes, ...]
    timesteps: int
    single: bool
    nbytes: int


NO_CHUNK: Final = Chunk(Form(()), (), 0, single=False, nbytes=0)
"""In the place of one that does not fit the model."""


@dataclass(eq=False, slots=True)
class Asked:
    """One operation on its way.

    Attributes:
        timeout: seconds for all attempts, once it is sent.
        answer: tells who waits what came of it, unless nobody does, which it returns; None: nobody.
        unless: errors by session; where its session is there, it is answered with the error, and not sent.

    """

    session: str
    chunk: Chunk
    timeout: float
    answer: Callable[[Asked, Answer], bool] | None
    unless: Mapping[str, Exception]

    def told(self, answer: Answer) -> bool:
        """Tell what came of it. Returns whether anybody waited."""
        return self.answer is not None and self.answer(self, answer)


class Layer:
    """Lays out callers' inputs for one model; quickly, where they are one timestep of its only input as it takes it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._forms: dict[tuple[tuple[Column, ...], int], Form] = {}
        self._usual: tuple[np.dtype[np.generic], tuple[int | None, ...]] | None = None
        if len(model.inputs) == 1 and (not model.chunk_sizes or 1 in model.chunk_sizes):
            [spec] = model.inputs
            self._usual = spec.dtype, spec.shape
        self._one: Form | None = None  # of the usual

    def lay(self, x: Inputs) -> Chunk:
        """The caller's input as a chunk. Raises InvalidArgument as `lay_out`."""
        if self._one is not None and type(x) is np.ndarray and (x.dtype, x.shape) == self._usual:
            return Chunk(self._one, (x.tobytes(),), 1, single=True, nbytes=x.nbytes)
        laid = lay_out(self._model, x)
        found = []
        for name, array in laid.inputs.items():
            timed = name in laid.timed
            shape = array.shape[1:] if timed else array.shape
            step_bytes = array.nbytes // laid.timesteps if timed else array.nbytes
            found.append(Column(name, code_of(array.dtype), shape, timed, step_bytes))
        columns = tuple(found)
        # Chunks are padded to the longest of their frame: less than twofold.
        form = self._forms.setdefault((columns, (laid.timesteps - 1).bit_length()), Form(columns))
        if laid.single and self._usual is not None and columns[0].shape == self._usual[1]:
            self._one = form
        data = tuple(array.tobytes() for array in laid.inputs.values())
        return Chunk(form, data, laid.timesteps, laid.single, sum(map(len, data)))


def pack(chunks: Sequence[Chunk], options: inference_pb2.PredictOptions) -> inference_pb2.Frame:
    """The chunks, of one form, as a frame's columns."""
    longest, lengths = max(chunk.timesteps for chunk in chunks), None
    if any(chunk.timesteps != longest for chunk in chunks):
        lengths = np.array([chunk.timesteps for chunk in chunks], "<u4")
    tensors = []
    for place, column in enumerate(chunks[0].form.columns):
        data = [chunk.data[place] for chunk in chunks]
        if lengths is not None and column.timed:
            pads = [bytes((longest - chunk.timesteps) * column.step_bytes) for chunk in chunks]
            data = [part for pair in zip(data, pads, strict=True) for part in pair]
        shape = (len(chunks), longest, *column.shape) if column.timed else (len(chunks), *column.shape)
        tensors.append(tensor_pb2.Tensor(name=column.name, dtype=column.dtype, shape=shape, data=b"".join(data)))
    return columns(tensors, options, lengths)


class Unpacking:
    """A frame's result as the outputs of its chunks."""

    def __init__(self, model: Model, result: inference_pb2.FrameResult, *, sequences: bool) -> None:
        """`sequences`: outputs with a time axis have all timesteps, not only the last."""
        timed = {spec.name for spec in model.outputs if spec.has_time_axis and sequences}
        self._outputs = [(tensor.name, to_array(tensor), tensor.name in timed) for tensor in result.outputs]

    def outputs(self, place: int, chunk: Chunk) -> Outputs:
        """The outputs at one place, writable."""
        if len(self._outputs) == 1:
            _, array, timed = self._outputs[0]
            return _row(array, place, chunk, timed=timed)
        return one_or_all({name: _row(array, place, chunk, timed=timed) for name, array, timed in self._outputs})


def _row(array: Array, place: int, chunk: Chunk, *, timed: bool) -> Array:
    if timed:
        row: Array = array[place, 0, ...] if chunk.single else array[place, : chunk.timesteps]
    else:
        row = array[place, ...]
    return row.copy()
