"""A model as Triton's clients see it: the graph's own axes, with the batch axis first where it has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recurra.models import Model, TensorSpec
from recurra.models.config import TensorConfig
from recurra.models.layout import Port
from recurra.server.api.triton.refusals import told
from recurra.server.engine.engine import Engine
from recurra.server.served import Served
from recurra.wire.errors import ModelNotFound, RecurraError

Array = NDArray[Any]

SEQUENCE_IDS: Final = "sequence_ids"  # an input of its own: a batch of sequences, each row another one
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_DATATYPES: Final = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        dims: without the batch axis; -1 for any size.
        batched: it has a batch axis.
        lone: the graph takes one timestep a call, without a time axis.
    """

    spec: TensorSpec
    datatype: str
    dims: tuple[int, ...]
    batched: bool
    lone: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims, behind the batch axis if there is one."""
        return (-1, *self.dims) if self.batched else self.dims

    def taken(self, array: Array) -> Array:
        """What a client sent as (N, T, ...), or (N, ...) for what has no time axis."""
        if not self.batched:
            array = array[None]
        if self.lone and array.ndim == 1 + len(self.spec.shape):
            array = array[:, None]
        return array

    def given(self, array: Array, *, lone: bool) -> Array:
        """The other way round; `lone`: the client sent no time axis."""
        if self.lone and lone:
            array = array[:, 0]
        return array if self.batched else array[0]


class Control(NamedTuple):
    """An input of the graph that tells it of the sequence."""

    spec: TensorSpec
    given: TensorConfig

    def column(self, sequences: list[str], *, end: bool) -> Array:
        """What the rows of these sequences are fed, (N, *shape)."""
        values: Any = [self.given.values[end]]
        if self.given.control == "corrid":
            values = np.array([_number(sequence) for sequence in sequences], np.uint64)
        column = np.asarray(values).astype(self.spec.dtype)
        shape = tuple(size or 1 for size in self.spec.shape)
        return np.broadcast_to(column.reshape(-1, *[1] * len(shape)), (len(sequences), *shape))


class Front:
    """One model that is served.

    Attributes:
        inputs: by name, what clients send.
        controls: inputs that are fed with what their requests say of the sequence.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.model = engine, engine.model
        layout, given = self.model.program.layout, self.model.config.inputs
        self.controls = [Control(port.spec, given[port.spec.name]) for port in layout.inputs if _told(given, port)]
        self.inputs = {port.spec.name: _tensor(self.model, port) for port in layout.inputs if not _told(given, port)}
        self.outputs = [_tensor(self.model, port) for port in layout.outputs]

    @cached_property
    def told_of_the_end(self) -> bool:
        """Whether the graph, called timestep by timestep, is told which is the last."""
        return self.model.program.layout.stepwise and any(each.given.control == "end" for each in self.controls)

    @cached_property
    def max_batch(self) -> int:
        """Sequences in a batch; 0 where tensors have no batch axis."""
        return self.model.max_batch if all(tensor.batched for tensor in self.inputs.values()) else 0


class Fronts:
    """The models that are served."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._fronts: dict[str, Front] = {}

    def find(self, name: str, version: str = "") -> Front:
        """The model of this name, and of this version if one is given. Raises what Triton's clients are told."""
        try:
            engine = self.served.engine(name)
        except RecurraError as error:
            raise told(error, name) from None
        front = self._fronts.get(name)
        if front is None or front.engine is not engine:
            front = self._fronts[name] = Front(engine)
        if version not in ("", front.model.version):
            raise told(ModelNotFound("no such version"), name, version=version)
        return front


def _number(sequence: str) -> int:
    """The number that a sequence's id is, or one that stands for it."""
    if sequence.isascii() and sequence.isdecimal() and int(sequence) < 1 << 64:
        return int(sequence)
    return int.from_bytes(blake2b(sequence.encode(), digest_size=8).digest(), "little")


def _told(given: Mapping[str, TensorConfig], port: Port) -> bool:
    return port.spec.name in given and given[port.spec.name].control is not None


def _tensor(model: Model, port: Port) -> Tensor:
    spec = port.spec
    sizes, stepwise = model.signature.chunk_sizes, model.program.layout.stepwise
    lone = spec.has_time_axis and stepwise and port.time_axis is None
    time = 1 if stepwise else sizes[0] if len(sizes) == 1 else -1
    dims = (
        *([time] if spec.has_time_axis and not lone else []),
        *(-1 if size is None else size for size in spec.shape),
    )
    batched = port.batch_axis is not None
    return Tensor(spec, _DATATYPES[spec.dtype.newbyteorder("<")], dims, batched, lone)
