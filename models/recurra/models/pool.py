"""States of many sessions where the model runs. They cross to the host and back where they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from recurra.models.pooled import groups
from recurra.models.session import Session
from recurra.models.signature import Array, Signature

Places = NDArray[np.int64]

FRESH: Final = 0  # the place of the fresh state: nobody writes there
SCRATCH: Final = 1  # where rows that only fill up a batch write
FIRST: Final = 2  # of the places that sessions get


class Crossed(NamedTuple):
    """Bytes of states that went over the bus."""

    to_host: int
    to_device: int


class Pool:
    """Rows of device memory, a state each: `places` of them, FRESH and SCRATCH included. From any thread.

    Attributes:
        buffers: by dtype, (places, width).
    """

    def __init__(self, signature: Signature, beside: Session, places: int) -> None:
        """In the memory of the device of the session that it is `beside`."""
        self._signature = signature
        self._groups = groups(signature.states)
        self._to_host = self._to_device = 0
        self._counting = threading.Lock()
        self._reader, self._writer = beside.another(_reader(self._widths())), beside.another(_writer(self._widths()))
        self.buffers = {dtype: beside.buffer((places, width), dtype) for dtype, width in self._widths().items()}
        fresh = [np.ascontiguousarray(spec.fresh).view(np.uint8).reshape(-1) for spec in signature.states]
        self.write(np.array([FRESH]), np.concatenate(fresh)[None])
        self._to_device = 0

    @property
    def crossed(self) -> Crossed:
        """Since the start."""
        return Crossed(self._to_host, self._to_device)

    def read(self, places: Places) -> NDArray[np.uint8]:
        """The states at `places`, (N, state_bytes)."""
        bound = self._reader.bound()
        bound.feed("places", places)
        for dtype in self._groups:
            bound.take(f"pool_{dtype.name}", self.buffers[dtype])
            bound.give(f"rows_{dtype.name}")
        return self._joined(bound.run())

    def write(self, places: Places, rows: NDArray[np.uint8]) -> None:
        """Put states, (N, state_bytes), at `places`, which differ."""
        bound = self._writer.bound()
        bound.feed("places", places[:, None])
        for (dtype, states), columns in zip(self._groups.items(), self._cut(rows), strict=True):
            del states
            bound.feed(f"rows_{dtype.name}", columns)
            bound.take(f"pool_{dtype.name}", self.buffers[dtype])
            bound.give(f"written_{dtype.name}", self.buffers[dtype])
        bound.run()
        with self._counting:
            self._to_device += rows.nbytes

    def _joined(self, parts: Sequence[Array]) -> NDArray[np.uint8]:
        """(N, state_bytes) out of each group's (N, width)."""
        raw = [np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1) for part in parts]
        with self._counting:
            self._to_host += sum(part.nbytes for part in raw)
        if len(raw) == 1:
            return raw[0]
        rows = np.empty((len(raw[0]), self._signature.state_bytes), np.uint8)
        for states, part in zip(self._groups.values(), raw, strict=True):
            at = 0
            for index in states:
                here = self._columns[index]
                size = here.stop - here.start
                rows[:, here] = part[:, at : at + size]
                at += size
        return rows

    @property
    def _columns(self) -> list[slice]:
        """Where each state is in a row of bytes."""
        ends = np.cumsum([spec.nbytes for spec in self._signature.states]).tolist()
        return [slice(end - spec.nbytes, end) for end, spec in zip(ends, self._signature.states, strict=True)]

    def _cut(self, rows: NDArray[np.uint8]) -> list[Array]:
        """Each group's (N, width)."""
        columns = self._columns
        parts = [np.concatenate([rows[:, columns[i]] for i in states], axis=1) for states in self._groups.values()]
        return [np.ascontiguousarray(part).view(dtype) for part, dtype in zip(parts, self._groups, strict=True)]

    def _widths(self) -> dict[np.dtype[Any], int]:
        specs = self._signature.states
        return {
            dtype: sum(specs[index].nbytes for index in states) // dtype.itemsize
            for dtype, states in self._groups.items()
        }


def _reader(widths: Mapping[np.dtype[Any], int]) -> bytes:
    """Pools and places (N,) to rows (N, width)."""
    nodes = [helper.make_node("Gather", [f"pool_{d.name}", "places"], [f"rows_{d.name}"], axis=0) for d in widths]
    return _model(nodes, widths, ["pool"], ["rows"], places=[None])


def _writer(widths: Mapping[np.dtype[Any], int]) -> bytes:
    """Pools, places (N, 1) and rows (N, width) to the pools."""
    nodes = [
        helper.make_node("ScatterND", [f"pool_{d.name}", "places", f"rows_{d.name}"], [f"written_{d.name}"])
        for d in widths
    ]
    return _model(nodes, widths, ["pool", "rows"], ["written"], places=[None, 1])


def _model(
    nodes: list[NodeProto], widths: Mapping[np.dtype[Any], int], takes: list[str], gives: list[str], places: list[Any]
) -> bytes:
    def infos(kinds: list[str]) -> list[ValueInfoProto]:
        return [
            helper.make_tensor_value_info(f"{kind}_{dtype.name}", _code(dtype), [None, width])
            for dtype, width in widths.items()
            for kind in kinds
        ]

    inputs = [helper.make_tensor_value_info("places", TensorProto.INT64, places), *infos(takes)]
    graph = helper.make_graph(nodes, "pool", inputs, infos(gives))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


def _code(dtype: np.dtype[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype.newbyteorder("=")))
