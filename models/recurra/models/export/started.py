"""The start graph of an encoder-decoder model, made of an exported encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from recurra.models.names import all_names, rename, unused
from recurra.models.refusal import ModelRefused
from recurra.models.signature import Array


def from_fresh(model: ModelProto, states: Sequence[tuple[str, str, Array]]) -> None:
    """Takes states away from a graph, in place: each row starts from the fresh ones at every call.

    Args:
        states: the graph's input and output of each, the batch first, and one row's fresh state.

    """
    graph = model.graph
    taken, gone = all_names(graph), {name for before, after, _ in states for name in (before, after)}
    kept = [value for value in graph.input if value.name not in gone]
    rows, nodes = unused("rows", taken), list[NodeProto]()
    nodes.append(helper.make_node("Shape", [kept[0].name], [rows], start=0, end=1))
    for before, _, fresh in states:
        size, shape, value = (unused(f"{before}/{what}", taken) for what in ("size", "shape", "fresh"))
        graph.initializer.append(numpy_helper.from_array(np.array(fresh.shape, np.int64), size))
        graph.initializer.append(numpy_helper.from_array(fresh[None], value))
        nodes.append(helper.make_node("Concat", [rows, size], [shape], axis=0))
        nodes.append(helper.make_node("Expand", [value, shape], [before]))
    outputs = [value for value in graph.output if value.name not in gone]
    for values, left in ((graph.input, kept), (graph.output, outputs), (graph.node, [*nodes, *graph.node])):
        copies = [type(each).FromString(each.SerializeToString()) for each in left]
        del values[:]
        values.extend(copies)  # type: ignore[arg-type]


def call_as_states(start: ModelProto, states: Sequence[str]) -> None:
    """Calls the outputs of a start graph, in their order, as the model's `states`, unless they are called so already.

    Raises ModelRefused if there are more outputs than states.
    """
    graph, given = start.graph, [value.name for value in start.graph.output]
    if set(given) <= set(states):
        return
    if len(given) > len(states):
        raise ModelRefused(
            f"the start gives {len(given)} tensors ({', '.join(given)}), and the model has {len(states)} states "
            f"({', '.join(states)}): it must give states of the model, in this order, and nothing else"
        )
    taken = all_names(graph)
    rename(graph, {name: unused(f"{name}/inside", taken) for name in taken & set(states)})
    for value, name in zip(graph.output, states, strict=False):
        graph.node.append(helper.make_node("Identity", [value.name], [name]))
        value.name = name
