"""Nodes in an order in which each comes after those that it reads from, as ONNX asks for: the runtime does without."""

from __future__ import annotations

from onnx import GraphProto

from recurra.models.graph import reads, subgraphs
from recurra.models.refusal import ModelRefused


def sort(graph: GraphProto) -> None:
    """Puts them so, in place and at any depth. Raises ModelRefused where they read from each other in a circle."""
    for node in graph.node:
        for sub in subgraphs(node):
            sort(sub)
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [{maker[name] for name in reads(node) if name in maker} for node in graph.node]
    if all(not each or max(each) < index for index, each in enumerate(needs)):
        return
    nodes = list(graph.node)
    order = _order(needs)
    if len(order) < len(nodes):
        raise ModelRefused(f"the nodes of graph '{graph.name}' read from each other in a circle")
    del graph.node[:]
    graph.node.extend(nodes[index] for index in order)


def _order(needs: list[set[int]]) -> list[int]:
    """Those that can be put in order."""
    missing = [len(each) for each in needs]
    readers: list[list[int]] = [[] for _ in needs]
    for index, each in enumerate(needs):
        for other in each:
            readers[other].append(index)
    order = [index for index, count in enumerate(missing) if not count]
    for index in order:  # which grows
        for reader in readers[index]:
            missing[reader] -= 1
            if not missing[reader]:
                order.append(reader)
    return order
