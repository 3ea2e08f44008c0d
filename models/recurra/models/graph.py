"""Reading ONNX graphs: sizes and types of values, nested nodes, and what a value is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from recurra.models.refusal import ModelRefused

# A size, the name of a size that may be any, or None for one that has no name.
Dims = tuple[int | str | None, ...]

GATES: Final = {"RNN": 1, "GRU": 2, "LSTM": 3}  # activations a direction
STANDARD: Final = ("", "ai.onnx")


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
    """Whether some native node runs against time, so that chunks cannot equal one long run."""
    nodes = filter(is_recurrent, walk(graph))
    return any(attribute(node, "direction", "forward") != "forward" for node in nodes)


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


def ancestors(graph: GraphProto, name: str, *, through_shapes: bool) -> tuple[list[NodeProto], set[str]]:
    """The top-level nodes that make `name`, in graph order, and all names they read, `name` itself among them.

    Without `through_shapes` the search stops at Shape and Size: what lies behind is not data.
    """
    maker = {output: node for node in graph.node for output in node.output}
    names, stack, used = {name}, [name], set[int]()
    while stack:
        node = maker.get(stack.pop())
        if node is None or id(node) in used or (not through_shapes and node.op_type in ("Shape", "Size")):
            continue
        used.add(id(node))
        new = reads(node) - names
        names |= new
        stack.extend(new)
    return [node for node in graph.node if id(node) in used], names
