"""A graph whose states stay where it runs: it reads them from rows of pools, and writes the new ones to other rows.

A pool holds the states of many sessions, of one dtype: a row a session, its states one after another as in a record. In
front of the graph a row of each session is gathered and cut into its states; behind it the new states are joined and
scattered to the same pool, which is bound as input and output on one buffer. No row that a run reads is written by it,
so that a run that fails leaves all states as they were, and no order among the nodes is relied on.

The samples that a convolution looks back at are states too, which the host would put in front of a chunk: here the
graph does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from recurra.models.graph import STANDARD
from recurra.models.layout import Layout, Port, StatePort, context_axis
from recurra.models.names import all_names, unused
from recurra.models.refusal import ModelRefused
from recurra.models.signature import StateSpec

_OLDEST: Final = 11  # the opset that brought ScatterND
_SIZES_ARE_INPUTS: Final = 13  # the opset since which Split and ReduceSum take sizes and axes as inputs


@dataclass(frozen=True)
class Group:
    """The states of one dtype.

    Attributes:
        pool, written: the pool's names as the graph's input and output.
        drift: the output, (N,), that is 0 where they are finite and NaN elsewhere; empty where they always are.
        states: indices in the signature.
        width: elements of one session.
    """

    dtype: np.dtype[Any]
    pool: str
    written: str
    drift: str
    states: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class Pooled:
    """The graph.

    Attributes:
        places: the input, (N, 2) int64, of the rows to read and those to write.
        groups: by dtype.
        came: by name, the inputs that have a context, as they are called now.
    """

    model: bytes
    places: str
    groups: tuple[Group, ...]
    came: dict[str, str]


def groups(specs: Sequence[StateSpec]) -> dict[np.dtype[Any], tuple[int, ...]]:
    """The indices of the states of each dtype, in order."""
    found: dict[np.dtype[Any], tuple[int, ...]] = {}
    for index, spec in enumerate(specs):
        found[spec.dtype] = (*found.get(spec.dtype, ()), index)
    return found


def pooled(model: ModelProto, layout: Layout) -> Pooled:
    """The graph of `layout`, which is changed in place. Raises ModelRefused for an opset that is too old."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD), 0)
    if opset < _OLDEST:
        raise ModelRefused(f"states in a pool need opset {_OLDEST}, and the file has {opset}")
    return _Writer(model, layout, opset).write()


class _Writer:
    def __init__(self, model: ModelProto, layout: Layout, opset: int) -> None:
        self._model, self._graph, self._layout, self._opset = model, model.graph, layout, opset
        self._taken = all_names(model.graph)
        self._front, self._behind = GraphProto(), GraphProto()
        self._now = self._front  # where nodes are added
        self._came: dict[str, str] = {}

    def write(self) -> Pooled:
        layout, specs = self._layout, self._layout.signature().states
        places = unused("recurra_places", self._taken)
        self._graph.input.append(helper.make_tensor_value_info(places, TensorProto.INT64, [None, 2]))
        source, target = self._split(places, [1, 1])
        made = [self._group(dtype, states, specs) for dtype, states in groups(specs).items()]
        old = {index: name for group in made for index, name in self._read(group, source, specs).items()}
        new = {index: port.output for index, port in enumerate(layout.states)}
        for index, port in enumerate(layout.states):
            self._start(port, old[index])
        for index, looking in enumerate([port for port in layout.inputs if port.context], len(layout.states)):
            new[index] = self._look_back(looking, old[index], specs[index])
        self._now = self._behind
        for group in made:
            self._write_back(group, target, specs, new)
        dropped = {port.output for port in layout.states}
        outputs = [value for value in self._graph.output if value.name not in dropped]
        del self._graph.output[:]
        self._graph.output.extend(outputs)
        for group in made:
            self._tell(group)
        nodes = [*self._front.node, *self._graph.node, *self._behind.node]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        return Pooled(self._model.SerializeToString(), places, tuple(made), self._came)

    def _group(self, dtype: np.dtype[Any], states: tuple[int, ...], specs: Sequence[StateSpec]) -> Group:
        pool, written, drift = [
            unused(f"recurra_{what}_{dtype.name}", self._taken) for what in ("pool", "written", "drift")
        ]
        width = sum(_elements(specs[index]) for index in states)
        kind = helper.np_dtype_to_tensor_dtype(dtype.newbyteorder("="))
        self._graph.input.append(helper.make_tensor_value_info(pool, kind, [None, width]))
        return Group(dtype, pool, written, drift if dtype.kind == "f" else "", states, width)

    def _read(self, group: Group, source: str, specs: Sequence[StateSpec]) -> dict[int, str]:
        """The name of (N, elements), by state."""
        gathered = self._reshape(self._add("Gather", [group.pool, source], axis=0), [-1, group.width])
        if len(group.states) == 1:
            return {group.states[0]: gathered}
        parts = self._split(gathered, [_elements(specs[index]) for index in group.states])
        return dict(zip(group.states, parts, strict=True))

    def _start(self, port: StatePort, flat: str) -> None:
        """What the graph took from its caller is now a value in it."""
        spec = port.spec
        values = [value for value in self._graph.input if value.name != port.input]
        del self._graph.input[:]
        self._graph.input.extend(values)
        if not port.batched:
            self._reshape(flat, list(spec.shape), port.input)
        elif _is_plain(spec):
            shape = list(spec.shape)
            self._reshape(flat, [*shape[: spec.batch_axis], -1, *shape[spec.batch_axis :]], port.input)
        else:
            inverse = [spec.rows_first.index(axis) for axis in range(len(spec.rows_first))]
            self._add("Transpose", [self._reshape(flat, [-1, *spec.shape])], port.input, perm=inverse)

    def _look_back(self, port: Port, flat: str, spec: StateSpec) -> str:
        """Put an input's context in front of it, (N, T, ...) or (N, ...); the name of the new context, so laid out.

        The input comes as callers send it, and the graph gets it in its own order.
        """
        name, axis = port.spec.name, context_axis(port, stepwise=self._layout.stepwise)
        came = self._came[name] = unused(f"{name}/came", self._taken)
        value = next(value for value in self._graph.input if value.name == name)
        kind = value.type.tensor_type.elem_type
        self._graph.input.remove(value)
        rank = len(spec.shape) + 1
        self._graph.input.append(helper.make_tensor_value_info(came, kind, [None] * rank))
        chunk = self._add("Concat", [self._reshape(flat, [-1, *spec.shape]), came], axis=axis)
        last = [self._constant([each]) for each in (-port.context, np.iinfo(np.int64).max, axis)]
        kept = self._add("Slice", [chunk, *last])
        turned = chunk if port.order is None else self._add("Transpose", [chunk], perm=port.order)
        if port.batch_axis is None:
            self._add("Gather", [turned, self._constant(0)], name, axis=0)
        else:
            self._add("Identity", [turned], name)
        return kept

    def _write_back(self, group: Group, target: str, specs: Sequence[StateSpec], new: dict[int, str]) -> None:
        flats = [self._flat(specs[index], index, new[index]) for index in group.states]
        rows = self._add("Concat", flats, axis=1) if len(flats) > 1 else flats[0]
        self._add("ScatterND", [group.pool, target, rows], group.written)
        if group.drift:
            zeros = self._add("Sub", [rows, rows])  # or NaN
            if self._opset < _SIZES_ARE_INPUTS:
                self._add("ReduceSum", [zeros], group.drift, axes=[1], keepdims=0)
            else:
                self._add("ReduceSum", [zeros, self._constant([1])], group.drift, keepdims=0)

    def _flat(self, spec: StateSpec, index: int, name: str) -> str:
        """A new state as (N, elements)."""
        batched = index >= len(self._layout.states) or self._layout.states[index].batched
        if batched and not _is_plain(spec):
            name = self._add("Transpose", [name], perm=spec.rows_first)
        return self._reshape(name, [-1, _elements(spec)])

    def _tell(self, group: Group) -> None:
        kind = helper.np_dtype_to_tensor_dtype(group.dtype.newbyteorder("="))
        shapes: dict[str, list[int | None]] = {
            group.written: [None, group.width],
            group.drift: [None],
        }
        for name, shape in shapes.items():
            if name:
                self._graph.output.append(helper.make_tensor_value_info(name, kind, [*shape]))

    def _split(self, name: str, sizes: list[int]) -> list[str]:
        """Parts along axis 1."""
        parts = [unused("recurra/part", self._taken) for _ in sizes]
        if self._opset < _SIZES_ARE_INPUTS:
            node = helper.make_node("Split", [name], parts, axis=1, split=sizes)
        else:
            node = helper.make_node("Split", [name, self._constant(sizes)], parts, axis=1)
        self._now.node.append(node)
        return parts

    def _reshape(self, name: str, shape: list[int], result: str = "") -> str:
        return self._add("Reshape", [name, self._constant(shape)], result)

    def _constant(self, value: int | list[int]) -> str:
        return self._add("Constant", [], value=numpy_helper.from_array(np.array(value, np.int64)))

    def _add(self, op: str, inputs: list[str], result: str = "", **settings: Any) -> str:
        """A node with one output; its name."""
        result = result or unused(f"recurra/{op.lower()}", self._taken)
        self._now.node.append(helper.make_node(op, inputs, [result], **settings))
        return result


def _elements(spec: StateSpec) -> int:
    return spec.nbytes // spec.dtype.itemsize


def _is_plain(spec: StateSpec) -> bool:
    """Whether a session's elements lie side by side in the graph's layout too: no axis of more than 1 comes first."""
    return int(np.prod(spec.shape[: spec.batch_axis], dtype=np.int64)) == 1
