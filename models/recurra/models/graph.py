"""Reading ONNX graphs: sizes and types of values, nested nodes, and what a value is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from recurra.models.refusal import ModelRefused

# A size, the name of a size that may be any, or None for one that has no name.
Dims = tuple[int | str | None, ...]

GATES: Final = {"RNN": 1, "GRU": 2, "LSTM": 3}  # activations a direction
STANDARD: Final = ("", "ai.onnx")

_STEPS: Final = 4  # position among the inputs of a Slice
_MAX_BLANKS: Final = 3


def data_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs that must be fed: old files list their initializers among the inputs too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def dims_of(value: ValueInfoProto) -> Dims:
    """Declared sizes. Raises ModelRefused for what is no tensor, or one of unknown rank."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise ModelRefused(f"'{value.name}' is no tensor of known rank; export it with a shape")
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or None
        for dim in tensor.shape.dim
    )


def dtype_of(value: ValueInfoProto) -> np.dtype[Any]:
    """Numpy dtype, little-endian. Raises ModelRefused for text and types that numpy lacks."""
    code = value.type.tensor_type.elem_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(code)) if code else np.dtype(object)
    if dtype.kind not in "fiub":
        name = TensorProto.DataType.Name(code)
        raise ModelRefused(f"'{value.name}' has type {name}, which is not served; cast it to a number in the graph")
    return dtype.newbyteorder("<")


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """A node's attribute as a Python value."""
    for found in node.attribute:
        if found.name == name:
            value = helper.get_attribute_value(found)
            return value.decode() if isinstance(value, bytes) else value
    return default


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The bodies or branches of a node."""
    found = [each.g for each in node.attribute if each.type == AttributeProto.GRAPH]
    return found + [graph for each in node.attribute for graph in each.graphs]


def walk(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes at any depth."""
    for node in graph.node:
        yield node
        for sub in subgraphs(node):
            yield from walk(sub)


def is_recurrent(node: NodeProto) -> bool:
    """Whether the node is a native RNN, GRU or LSTM."""
    return node.op_type in GATES and node.domain in STANDARD


def looks_back(graph: GraphProto) -> bool:
    """Whether some layer runs against time, so that chunks cannot equal one long run."""
    nodes = list(walk(graph))
    if any(is_recurrent(node) and attribute(node, "direction", "forward") != "forward" for node in nodes):
        return True
    if any(node.op_type == "Scan" and any(attribute(node, "scan_input_directions", [])) for node in nodes):
        return True
    fixed = constants(graph)
    if any(node.op_type == "Loop" for node in nodes) and any(_is_flip(node, fixed) for node in nodes):
        return True
    layers = any(node.op_type == "Loop" or is_recurrent(node) for node in nodes)
    return layers and any(node.op_type == "ReverseSequence" for node in nodes)


def _is_flip(node: NodeProto, fixed: Mapping[str, TensorProto]) -> bool:
    if node.op_type != "Slice" or len(node.input) <= _STEPS or node.input[_STEPS] not in fixed:
        return False
    return bool((constant(fixed[node.input[_STEPS]]) < 0).any())


def blanks(graph: GraphProto) -> tuple[float, ...]:
    """Values of an input that may mark a timestep as masked: 0 and what the graph compares with, if it has a Loop."""
    nodes = list(walk(graph))
    if not any(node.op_type in ("Loop", "Scan") for node in nodes):
        return ()
    fixed = constants(graph)
    compared = [fixed[name] for node in nodes if node.op_type == "Equal" for name in node.input if name in fixed]
    values = [
        float(constant(tensor).reshape(-1)[0]) for tensor in compared if len(tensor.dims) == 0 or tensor.dims[0] == 1
    ]
    return tuple(dict.fromkeys([0.0, *values]))[:_MAX_BLANKS]


def label(node: NodeProto) -> str:
    """A node as a message names it."""
    return f"{node.op_type} node '{node.name or (node.output[0] if node.output else '?')}'"


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Initializers and Constant nodes of the top level, by the name of their value."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if isinstance(value, TensorProto):
            found[node.output[0]] = value
    return found


def constant(tensor: TensorProto) -> np.ndarray[Any, np.dtype[Any]]:
    """A constant's value."""
    return numpy_helper.to_array(tensor)


def reads(node: NodeProto) -> set[str]:
    """All names that a node needs, its bodies' outer names among them."""
    names = {name for name in node.input if name}
    for sub in subgraphs(node):
        inner = {value.name for value in sub.input} | {tensor.name for tensor in sub.initializer}
        for child in sub.node:
            names |= reads(child) - inner
            inner |= set(child.output)
        names |= {value.name for value in sub.output} - inner
    return names


def ancestors(
    graphs: Sequence[GraphProto], wanted: Iterable[str], *, through_shapes: bool
) -> tuple[list[NodeProto], set[str]]:
    """The nodes that make the `wanted` names, in graph order, and all names they read, `wanted` among them.

    Without `through_shapes` the search stops at Shape and Size: what lies behind is not data.

    Args:
        graphs: a graph, and the branches in it that lead to the one where `wanted` are.

    """
    nodes = [node for graph in graphs for node in graph.node]
    maker = {output: node for node in nodes for output in node.output if output}
    names, used = set(wanted), set[int]()
    stack = list(names)
    while stack:
        node = maker.get(stack.pop())
        if node is None or id(node) in used or (not through_shapes and node.op_type in ("Shape", "Size")):
            continue
        used.add(id(node))
        new = reads(node) - names
        names |= new
        stack.extend(new)
    return [node for node in nodes if id(node) in used], names
