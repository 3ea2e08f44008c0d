"""The lift: native recurrent nodes whose state lives and dies inside one run get it as graph input and output."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from recurra.models import initial, layers
from recurra.models.flow import KINDS, Flow
from recurra.models.graph import ancestors, attribute, constants, data_inputs, is_recurrent, label, walk
from recurra.models.pairs import Pair
from recurra.models.refusal import ModelRefused
from recurra.models.signature import Array

# How a state's batch size is called in the lifted graph.
BATCH: Final = "recurra_batch"


def lift(model: ModelProto, known: Iterable[Pair] = ()) -> list[Pair]:
    """Exposes the states that the file keeps to itself; changes `model` in place and returns the new pairs.

    A node's own input is replaced, never the tensor behind it: exporters share one zeros tensor between h and c and
    between layers. Nodes whose initial state comes from a `known` state stay as they are.

    Raises ModelRefused, naming node, reason and remedy, for what cannot be lifted.
    """
    graph = model.graph
    exposed = {pair.input for pair in known}
    nodes = [node for node in graph.node if is_recurrent(node)]
    _refuse_nested(graph)
    # All initial values first: an evaluation must see the graph as it came.
    fresh = [{kind: _fresh(model, node, kind, exposed) for kind in _kinds(node)} for node in nodes]
    pairs = []
    for node, layer, values in zip(nodes, layers.names(nodes), fresh, strict=True):
        for kind, value in values.items():
            if value is not None:
                pairs.append(_expose(graph, node, kind, layer, value))
    return pairs


def _kinds(node: NodeProto) -> tuple[str, ...]:
    return ("h", "c") if node.op_type == "LSTM" else ("h",)


def _refuse_nested(graph: GraphProto) -> None:
    """A node in a branch or body is served only where its state comes in from outside."""
    flow = Flow(graph)
    fixed = {tensor.name for tensor in graph.initializer}
    fixed.update(node.output[0] for node in walk(graph) if node.op_type in ("Constant", "ConstantOfShape"))
    for site in flow.sites:
        starts = site.inputs[KINDS["h"][0] :][:1]
        if site.nested and {name for start in starts for _, name in flow.origins(start)} <= fixed:
            raise ModelRefused(
                f"{label(site.node)} lies in a branch or loop body and starts from the same state at every call: this "
                "cannot be lifted yet; export it without control flow, or with its state as input and output"
            )


def _fresh(model: ModelProto, node: NodeProto, kind: str, exposed: set[str]) -> Array | None:
    """The fresh state (D, H) of one session; None where the caller of the graph gives it already."""
    source = _source(node, kind)
    if source:
        _, names = ancestors(model.graph, source, through_shapes=False)
        inputs = names & {value.name for value in data_inputs(model.graph)}
        if inputs & exposed:
            return None
        if inputs:
            raise ModelRefused(_from_data(model.graph, node, sorted(inputs)))
    if attribute(node, "layout", 0):
        raise ModelRefused(
            f"{label(node)} has layout=1, which ONNX Runtime does not run; export it with layout=0 (time first)"
        )
    if source:
        return initial.evaluate(model, source, label(node))
    return np.zeros(_shape(model.graph, node), _dtype(model.graph, node))


def _from_data(graph: GraphProto, node: NodeProto, inputs: list[str]) -> str:
    if not ancestors(graph, inputs[0], through_shapes=False)[0] and inputs[0] in node.input:
        return (
            f"{label(node)} starts from the input '{inputs[0]}', but its final state is no output of the graph; "
            "export the final state as an output too, or leave the initial state out to have it lifted"
        )
    return (
        f"{label(node)} starts from a state that is computed from the data ({', '.join(inputs)}): it would start "
        "anew at every call; export the part that computes it as a model of its own, and this state as input and output"
    )


def _source(node: NodeProto, kind: str) -> str:
    index = KINDS[kind][0]
    return node.input[index] if index < len(node.input) else ""


def _shape(graph: GraphProto, node: NodeProto) -> tuple[int, int]:
    """Directions and units."""
    directions = 2 if attribute(node, "direction", "forward") == "bidirectional" else 1
    units = attribute(node, "hidden_size")
    if units is None:
        weights = constants(graph).get(node.input[2])
        if weights is None:
            raise ModelRefused(f"{label(node)} tells no hidden_size; export it with this attribute")
        units = weights.dims[-1]
    return directions, units


def _dtype(graph: GraphProto, node: NodeProto) -> np.dtype[np.floating]:
    """The type of the weights, which is the state's; float32 where they are computed."""
    weights = constants(graph).get(node.input[2])
    return np.dtype(helper.tensor_dtype_to_np_dtype(weights.data_type if weights else TensorProto.FLOAT))


def _expose(graph: GraphProto, node: NodeProto, kind: str, layer: str, fresh: Array) -> Pair:
    name = f"{layer}/{kind}"
    source, result = KINDS[kind]
    element = helper.np_dtype_to_tensor_dtype(fresh.dtype)
    dims = [fresh.shape[0], BATCH, fresh.shape[1]]
    taken = _all_names(graph)
    before, after = _unused(name, taken), _unused(f"{name}/next", taken)

    _extend(node.input, source)
    node.input[source] = before
    graph.input.append(helper.make_tensor_value_info(before, element, dims))

    _extend(node.output, result)
    if not node.output[result]:
        node.output[result] = after
    else:  # it may be an output of the graph already, as data
        graph.node.append(helper.make_node("Identity", [node.output[result]], [after]))
    graph.output.append(helper.make_tensor_value_info(after, element, dims))
    return Pair(name, layer, before, after, batch_axis=1, fresh=fresh, origin="lifted")


def _extend(names: object, index: int) -> None:
    append: Callable[[str], None] = names.append  # type: ignore[attr-defined]
    while len(names) <= index:  # type: ignore[arg-type]
        append("")


def _all_names(graph: GraphProto) -> set[str]:
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    return names.union(*(node.output for node in walk(graph)))


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
