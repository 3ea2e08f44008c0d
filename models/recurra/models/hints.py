"""Batch and time axes that native nodes betray: their input is (T, N, F), and it is followed back to a graph input."""

from __future__ import annotations

from typing import Final

from onnx import GraphProto, NodeProto

from recurra.models.graph import attribute, constants, data_inputs, is_recurrent

# Ops that keep the axes in front of the last one where they are.
_KEEP: Final = frozenset(
    [
        "Identity",
        "Cast",
        "Dropout",
        "MatMul",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Relu",
        "Tanh",
        "Sigmoid",
        "Clip",
        "LayerNormalization",
    ]
)


def native_axes(graph: GraphProto) -> dict[str, tuple[int, int]]:
    """Batch and time axis of the graph inputs that reach a native node in a plain way."""
    maker = {output: node for node in graph.node for output in node.output}
    inputs = {value.name for value in data_inputs(graph)}
    fixed = set(constants(graph))
    found: dict[str, tuple[int, int]] = {}
    for node in filter(is_recurrent, graph.node):
        if not node.input or attribute(node, "layout", 0):
            continue
        name, batch, time = node.input[0], 1, 0
        while name in maker:
            step = _before(maker[name], fixed, batch, time)
            if step is None:
                break
            name, batch, time = step
        if name in inputs:
            found.setdefault(name, (batch, time))
    return found


def _before(node: NodeProto, fixed: set[str], batch: int, time: int) -> tuple[str, int, int] | None:
    """The value that `node` works on, and where its axes were; None where that is not plain."""
    moving = [name for name in node.input if name and name not in fixed]
    if len(moving) != 1:
        return None
    if node.op_type == "Transpose":
        order = attribute(node, "perm")
        return (moving[0], order[batch], order[time]) if order and max(batch, time) < len(order) else None
    table = node.op_type == "Gather" and attribute(node, "axis", 0) == 0 and moving[0] == node.input[1]
    return (moving[0], batch, time) if table or node.op_type in _KEEP else None
