"""Loops relieved of what they carry but never change: weights, mostly, which the body can read from outside.

A carried weight is no constant to the runtime: it is not packed once but read anew at every iteration, and the rows of
a batch then differ in their last bits from the same rows alone.
"""

from __future__ import annotations

from onnx import GraphProto, NodeProto, helper

from recurra.models.carried import body_of, carried, is_invariant, is_loop
from recurra.models.graph import subgraphs
from recurra.models.names import all_names, rename_reads, unused


def hoist(graph: GraphProto) -> int:
    """Takes invariant values out of all Loops and Scans, in place; how many there were."""
    return _hoist(graph, all_names(graph))


def _hoist(graph: GraphProto, taken: set[str]) -> int:
    count = 0
    for node in list(graph.node):
        if is_loop(node):
            count += _relieve(graph, node, taken)
        for sub in subgraphs(node):
            count += _hoist(sub, taken)
    return count


def _relieve(graph: GraphProto, loop: NodeProto, taken: set[str]) -> int:
    body = body_of(loop)
    values = [value for value in carried(loop) if is_invariant(body, value) and value.result < len(loop.output)]
    if len(values) == len(loop.output):  # a Loop needs an output
        values = values[1:]
    shift = 1 if loop.op_type == "Loop" else 0  # the body of a Loop gives its condition first
    place = next(index for index, node in enumerate(graph.node) if node is loop)
    inside = all_names(body) if values else set()
    for value in reversed(values):
        outer = loop.input[value.source]
        if outer in inside:  # hidden by a value of the body
            outer = unused(f"{outer}/held", taken)
            graph.node.insert(place, helper.make_node("Identity", [loop.input[value.source]], [outer]))
            place += 1
        if loop.output[value.result]:
            graph.node.insert(place + 1, helper.make_node("Identity", [outer], [loop.output[value.result]]))
        del loop.input[value.source], loop.output[value.result]
        del body.input[value.source], body.output[value.result + shift]
        rename_reads(body, {value.before: outer})
        for output in body.output:
            if output.name == outer:  # given out at each iteration too: a body's output is made in the body
                output.name = unused(f"{outer}/given", taken)
                body.node.append(helper.make_node("Identity", [outer], [output.name]))
    return len(values)
