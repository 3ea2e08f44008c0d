"""Nodes that no output needs, such as what made the zeros that a layer began with before its state was lifted.

The runtime keeps them. On a GPU those that work on sizes run on the host, and keep a timestep from being recorded.
"""

from __future__ import annotations

from onnx import GraphProto

from recurra.models.graph import reads, subgraphs


def bury(graph: GraphProto) -> int:
    """Takes all such nodes out, in place and at any depth; how many."""
    wanted = {value.name for value in graph.output}
    count = 0
    for index, node in reversed(list(enumerate(graph.node))):
        if wanted.isdisjoint(node.output):
            del graph.node[index]
            count += 1
        else:
            count += sum(bury(sub) for sub in subgraphs(node))
            wanted |= reads(node)
    return count
