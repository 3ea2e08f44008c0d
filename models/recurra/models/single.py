"""A graph for single timesteps: a Scan over one is its body, and sizes that are known then are constants.

So it can be recorded as a CUDA graph, which takes neither Scans nor nodes on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from recurra.models.carried import body_of
from recurra.models.dead import bury
from recurra.models.graph import STANDARD, attribute
from recurra.models.inline import inlined
from recurra.models.names import all_names, unused
from recurra.models.sizes import Sizes, Whole, dims, types

_AXES_ARE_INPUTS: Final = 13  # the opset since which Squeeze takes its axes as an input


def single(model: ModelProto, axes: Mapping[str, int]) -> None:
    """Makes it of `model`, in place.

    Args:
        axes: where each graph input has its time, of those that have it.

    """
    for value in model.graph.input:
        if value.name in axes:
            value.type.tensor_type.shape.dim[axes[value.name]].dim_value = 1
    opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD), 0)
    taken = all_names(model.graph)
    while _wrote(model, opset, taken):
        pass
    _fold(model)
    bury(model.graph)


def _wrote(model: ModelProto, opset: int, taken: set[str]) -> bool:
    """Writes out all Scans over one timestep but those in bodies; whether there was one."""
    graph, kinds, nodes, wrote = model.graph, dict[str, TypeProto](), list[NodeProto](), False
    for node in graph.node:
        if node.op_type == "Scan" and node.domain in STANDARD:
            kinds = kinds or types(model)
            if _is_single(node, kinds):
                nodes += _written(graph, node, opset, taken)
                wrote = True
                continue
        nodes.append(node)
    if wrote:
        del graph.node[:]
        graph.node.extend(nodes)
    return wrote


def _axes(scan: NodeProto, what: str, count: int) -> list[int]:
    return list(attribute(scan, f"scan_{what}_axes", [0] * count))


def _is_single(scan: NodeProto, kinds: Mapping[str, TypeProto]) -> bool:
    """Whether it scans one timestep; all that it scans is of one length."""
    count = int(attribute(scan, "num_scan_inputs"))
    found = zip(scan.input[-count:], _axes(scan, "input", count), strict=True)
    return any(_is_one(kinds.get(name), axis) for name, axis in found)


def _is_one(kind: TypeProto | None, axis: int) -> bool:
    sizes = dims(kind)
    return sizes is not None and sizes[axis] == 1


def _written(graph: GraphProto, scan: NodeProto, opset: int, taken: set[str]) -> list[NodeProto]:
    body, count = body_of(scan), int(attribute(scan, "num_scan_inputs"))
    states = len(scan.input) - count
    before, given, behind, results = [], list(scan.input[:states]), [], list(scan.output[:states])
    for name, axis in zip(scan.input[states:], _axes(scan, "input", count), strict=True):
        given.append(unused(f"{name}/one", taken))
        before.append(helper.make_node("Squeeze", [name], [given[-1]], axes=[axis]))
    stacked = scan.output[states:]
    for name, axis in zip(stacked, _axes(scan, "output", len(stacked)), strict=True):
        results.append(unused(f"{name}/one", taken) if name else "")
        if name:
            behind.append(helper.make_node("Unsqueeze", [results[-1]], [name], axes=[axis]))
    if opset >= _AXES_ARE_INPUTS:
        for node in (*before, *behind):
            node.input.append(unused(f"{node.output[0]}/axes", taken))
            graph.initializer.append(numpy_helper.from_array(np.array(attribute(node, "axes")), node.input[1]))
            del node.attribute[:]
    return [*before, *inlined(graph, body, given, results, taken), *behind]


def _fold(model: ModelProto) -> None:
    """Makes constants of the sizes that are known, and Reshapes that one size is missing of find it themselves."""
    graph, kinds = model.graph, types(model)
    sizes, taken = Sizes([graph], kinds), all_names(graph)
    changed = []  # after all are read
    for node in graph.node:
        if node.op_type == "Reshape":
            shape = _shape(sizes.whole(node.input[1]))
            if shape:
                name = unused(f"{node.output[0]}/shape", taken)
                graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
                node.input[1] = name
        elif node.op_type != "Constant" and (value := _known(node.output[0], sizes, kinds)) is not None:
            changed.append((node, helper.make_node("Constant", [], [node.output[0]], value=value)))
        elif node.op_type == "ReverseSequence" and _is_one(kinds.get(node.input[0]), attribute(node, "time_axis", 0)):
            changed.append((node, helper.make_node("Identity", node.input[:1], node.output)))
    for node, other in changed:
        node.CopyFrom(other)


def _known(name: str, sizes: Sizes, kinds: Mapping[str, TypeProto]) -> TensorProto | None:
    """A value, if that and its type are known; an output that is left out has none."""
    whole, kind = sizes.whole(name), kinds.get(name, TypeProto()).tensor_type.elem_type
    numbers = sizes.numbers(name)
    if not name or not kind or whole is None or numbers is None:
        return None
    array = np.array(numbers, helper.tensor_dtype_to_np_dtype(kind))
    return numpy_helper.from_array(array.reshape([-1] * whole.rank))


def _shape(whole: Whole | None) -> list[int] | None:
    """A shape that one size is missing of, -1 in its place."""
    parts = whole.parts if whole else ()
    sizes = [-1 if part is None or part.size else part.plus for part in parts]
    return sizes if sizes.count(-1) == 1 and 0 not in sizes else None
