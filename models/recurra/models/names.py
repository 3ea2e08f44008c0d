"""The names of a graph's values and nodes, at any depth."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto

from recurra.models.graph import subgraphs, walk


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Renames values where `graph` makes or takes them, and where it and what lies in it reads them."""
    for value in graph.input:
        value.name = names.get(value.name, value.name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name in names:
                node.output[index] = names[name]
    rename_reads(graph, names)


def rename_reads(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Renames values of an outer scope, or inputs, where `graph` and what lies in it read them."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]
        for sub in subgraphs(node):
            hidden = {value.name for value in sub.input} | {tensor.name for tensor in sub.initializer}
            hidden |= {name for child in sub.node for name in child.output}
            rename_reads(sub, {old: new for old, new in names.items() if old not in hidden})
    for value in graph.output:
        value.name = names.get(value.name, value.name)


def all_names(graph: GraphProto) -> set[str]:
    """The names of all values at any depth."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        names.update(node.output)
        for sub in subgraphs(node):
            names |= all_names(sub)
    return names


def unused(name: str, taken: set[str]) -> str:
    """`name`, changed if it is taken; it is taken from now on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def name_nodes(graph: GraphProto) -> None:
    """Names the nodes that have no name, after what they make: the runtime tells of nodes by name alone."""
    for node in walk(graph):
        if not node.name and node.output:
            node.name = node.output[0]
