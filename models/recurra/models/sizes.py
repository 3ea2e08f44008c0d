"""Whole numbers in a graph that are known but for the sizes of its inputs: how long something is, which timestep it is.

Sizes are those of ONNX's own shape inference: a number, or a name where it may be any. Two of one name are equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from math import prod
from typing import Final, NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper
from onnx.shape_inference import InferenceError, infer_shapes

from recurra.models.graph import STANDARD, attribute, constants, data_inputs, subgraphs

_MOST: Final = 64  # elements of a constant that may be sizes
_DEEPEST: Final = 64  # nodes between what is asked for and what is known
# Up to where a type has all whole numbers.
_EXACT: Final[Mapping[int, int]] = {
    TensorProto.INT32: 2**31 - 1,
    TensorProto.INT64: 2**63 - 1,
    TensorProto.FLOAT: 2**24,
    TensorProto.DOUBLE: 2**53,
}


class Number(NamedTuple):
    """turns * (the number of the iteration) + size + plus; `size` is a name, or empty."""

    turns: int = 0
    size: str = ""
    plus: int = 0


class Whole(NamedTuple):
    """A tensor of rank 0 or 1 of numbers; None for one that is not known."""

    rank: int
    parts: tuple[Number | None, ...]


def types(model: ModelProto) -> dict[str, TypeProto]:
    """Types and sizes of all values at any depth that have a name of their own, inferred; what is declared of values
    that are computed is not believed.
    """
    copy = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph, weights = model.graph, map(_light, model.graph.initializer)
    copy.graph.CopyFrom(helper.make_graph(graph.node, graph.name, graph.input, graph.output, [*weights]))
    for value in data_inputs(copy.graph):
        names = Counter(dim.dim_param for dim in value.type.tensor_type.shape.dim)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            # Some exporters call all sizes that may be any alike.
            if names[dim.dim_param] > 1 if dim.dim_param else dim.dim_value <= 0:
                dim.dim_param = f"{value.name}/{axis}"
    _forget(copy.graph)
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    often = Counter(_defined(copy.graph))
    _lend(copy.graph, {})
    try:
        inferred = infer_shapes(copy, data_prop=True).graph
    except (InferenceError, RuntimeError, ValueError):  # it contradicts itself, or is too large
        return {}
    return {name: kind for name, kind in _typed(inferred) if often[name] == 1}


def dims(kind: TypeProto | None) -> tuple[int | str | None, ...] | None:
    """Sizes; None for what has no known rank."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in kind.tensor_type.shape.dim
    )


def size(dim: int | str | None) -> Number | None:
    """A size as a number."""
    if dim is None:
        return None
    return Number(size=dim) if isinstance(dim, str) else Number(plus=dim)


def _forget(graph: GraphProto) -> None:
    """Forgets what is declared of computed values, and what weights are."""
    del graph.value_info[:]
    tensors = list(map(_light, graph.initializer))
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    for node in graph.node:
        for body in subgraphs(node):
            for value in chain(body.output, body.input if node.op_type == "Loop" else ()):
                value.type.tensor_type.ClearField("shape")
            _forget(body)


def _light(tensor: TensorProto) -> TensorProto:
    """A constant, if it may be sizes, else one that is nothing but as large."""
    if prod(tensor.dims) <= _MOST:
        return tensor
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _lend(graph: GraphProto, outer: Mapping[str, TensorProto]) -> None:
    """Gives bodies the constants that they read from outside: inference does not look there."""
    hidden = {value.name for value in graph.input}.union(*(node.output for node in graph.node))
    known = {name: each for name, each in outer.items() if name not in hidden}
    known |= {name: each for name, each in constants(graph).items() if prod(each.dims) <= _MOST}
    for body in (sub for node in graph.node for sub in subgraphs(node)):
        own = {*_defined(body)}
        lent = {name for node in body.node for name in node.input if name in known and name not in own}
        for name in sorted(lent):
            body.initializer.add().CopyFrom(known[name])
            body.initializer[-1].name = name
        _lend(body, known)


def _defined(graph: GraphProto) -> list[str]:
    names = list({value.name for value in graph.input} | {tensor.name for tensor in graph.initializer})
    for node in graph.node:
        names.extend(node.output)
        for sub in subgraphs(node):
            names.extend(_defined(sub))
    return names


def _typed(graph: GraphProto) -> list[tuple[str, TypeProto]]:
    found = [(value.name, value.type) for value in chain(graph.input, graph.value_info, graph.output)]
    found += [
        (tensor.name, helper.make_tensor_type_proto(tensor.data_type, tensor.dims)) for tensor in graph.initializer
    ]
    for node in graph.node:
        for sub in subgraphs(node):
            found += _typed(sub)
    return found


class Sizes:
    """The numbers of a graph."""

    def __init__(
        self, graphs: Sequence[GraphProto], types: Mapping[str, TypeProto], known: Mapping[str, Whole] | None = None
    ) -> None:
        """Of the last of `graphs`, which lies in those before it; `known`: of its inputs."""
        self._types = types
        self._known = dict(known or {})
        self._found: dict[str, Whole | None] = {}
        self._depth = 0
        self._fixed: dict[str, TensorProto] = {}
        self._maker: dict[str, NodeProto] = {}
        for graph in graphs:
            own = {name: node for node in graph.node for name in node.output}
            hidden = {value.name for value in graph.input} | set(own)
            self._maker = {name: node for name, node in self._maker.items() if name not in hidden} | own
            self._fixed = {name: each for name, each in self._fixed.items() if name not in hidden} | constants(graph)

    def number(self, name: str) -> Number | None:
        """The one number that a value is."""
        found = self.whole(name)
        return found.parts[0] if found is not None and len(found.parts) == 1 else None

    def fixed(self, name: str) -> np.ndarray | None:
        """A constant's value, through Identity."""
        while name not in self._fixed and (node := self._maker.get(name)) is not None and node.op_type == "Identity":
            name = node.input[0]
        return numpy_helper.to_array(self._fixed[name]) if name in self._fixed else None

    def maker(self, name: str) -> NodeProto | None:
        """The node that makes a value, behind Identity."""
        node = self._maker.get(name)
        while node is not None and node.op_type == "Identity":
            node = self._maker.get(node.input[0])
        return node

    def whole(self, name: str) -> Whole | None:
        """What a value is, of known rank; None for one of another."""
        if name in self._known:
            return self._known[name]
        if name not in self._found:
            self._depth += 1
            self._found[name] = self._find(name) if self._depth <= _DEEPEST else None
            self._depth -= 1
        return self._found[name]

    def _find(self, name: str) -> Whole | None:
        if name in self._fixed:
            return _constant(self._fixed[name])
        node = self._maker.get(name)
        found = None if node is None or node.domain not in STANDARD else self._of(node)
        if found is not None and len(found.parts) <= _MOST:
            return found
        return _unknown(self._types.get(name))

    def _of(self, node: NodeProto) -> Whole | None:
        if node.op_type in ("Shape", "Concat"):
            return self._shape(node) if node.op_type == "Shape" else self._joined(node)
        first = self.whole(node.input[0]) if node.input else None
        return None if first is None else self._made(node, first)

    def _made(self, node: NodeProto, first: Whole) -> Whole | None:
        """What a node makes of its first input."""
        match node.op_type:
            case "Identity":
                return first
            case "Cast":
                return first if _fits(first.parts, attribute(node, "to")) else None
            case "Squeeze" | "Unsqueeze" if len(first.parts) == 1:
                goal = first.rank + (1 if node.op_type == "Unsqueeze" else -1)
                return Whole(goal, first.parts) if goal in (0, 1) else None
            case "Add" | "Sub" | "Mul" | "Div":
                return self._reckoned(node, first)
            case "Gather":
                return self._gathered(node, first)
            case "Slice":
                return self._sliced(node, first)
        return None

    def numbers(self, name: str) -> list[int] | None:
        """The constants that a value is made of; none for an input that is left out."""
        found = self.whole(name) if name else Whole(1, ())
        if found is None or any(part is None or part.turns or part.size for part in found.parts):
            return None
        return [part.plus for part in found.parts if part is not None]

    def _shape(self, node: NodeProto) -> Whole | None:
        sizes = dims(self._types.get(node.input[0]))
        if sizes is None:
            return None
        parts = [size(each) for each in sizes]
        return Whole(1, tuple(parts[attribute(node, "start", 0) : attribute(node, "end")]))

    def _joined(self, node: NodeProto) -> Whole | None:
        each = [self.whole(name) for name in node.input]
        parts = [part for whole in each if whole is not None and whole.rank == 1 for part in whole.parts]
        return Whole(1, tuple(parts)) if all(whole is not None and whole.rank == 1 for whole in each) else None

    def _reckoned(self, node: NodeProto, first: Whole) -> Whole | None:
        second = self.whole(node.input[1])
        if second is None or len(first.parts) != 1 or len(second.parts) != 1:
            return None
        one, other = first.parts[0], second.parts[0]
        kind = self._types.get(node.output[0], TypeProto()).tensor_type.elem_type
        if node.op_type == "Div" and kind not in (TensorProto.INT32, TensorProto.INT64):
            return None
        result = None if one is None or other is None else _reckoned(node.op_type, one, other)
        if result is None or not _fits([result], kind or TensorProto.FLOAT):
            return None
        return Whole(max(first.rank, second.rank), (result,))

    def _gathered(self, node: NodeProto, first: Whole) -> Whole | None:
        index, places = self.whole(node.input[1]), self.numbers(node.input[1])
        if index is None or places is None or first.rank != 1:
            return None
        if any(not -len(first.parts) <= place < len(first.parts) for place in places):
            return None
        return Whole(index.rank, tuple(first.parts[place] for place in places))

    def _sliced(self, node: NodeProto, first: Whole) -> Whole | None:
        starts, ends = (self.numbers(name) for name in node.input[1:3])
        if first.rank != 1 or not starts or not ends or any(self.numbers(name) != [1] for name in node.input[4:]):
            return None
        return Whole(1, first.parts[starts[0] : ends[0]])


def _fits(parts: Iterable[Number | None], kind: int) -> bool:
    """Whether a type has the numbers."""
    return all(part is None or abs(part.plus) <= _EXACT.get(kind, -1) for part in parts)


def _reckoned(op: str, one: Number, other: Number) -> Number | None:
    plain = not (one.turns or one.size or other.turns or other.size)
    if op == "Add" and not (one.size and other.size):
        return Number(one.turns + other.turns, one.size or other.size, one.plus + other.plus)
    if op == "Sub" and not other.size:
        return Number(one.turns - other.turns, one.size, one.plus - other.plus)
    if op == "Mul" and plain:
        return Number(plus=one.plus * other.plus)
    if op == "Div" and plain and other.plus > 0 and one.plus >= 0:
        return Number(plus=one.plus // other.plus)
    return None


def _unknown(kind: TypeProto | None) -> Whole | None:
    sizes = dims(kind)
    if sizes is None or len(sizes) > 1 or not all(isinstance(each, int) and each <= _MOST for each in sizes):
        return None
    return Whole(len(sizes), (None,) * (int(sizes[0] or 0) if sizes else 1))


def _constant(tensor: TensorProto) -> Whole | None:
    if len(tensor.dims) > 1 or (tensor.dims and tensor.dims[0] > _MOST):
        return None
    array = numpy_helper.to_array(tensor).reshape(-1)
    if array.dtype.kind not in "iuf" or not (np.isfinite(array).all() and (array == np.trunc(array)).all()):
        return None
    return Whole(len(tensor.dims), tuple(Number(plus=int(each)) for each in array))
