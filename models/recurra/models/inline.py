"""The nodes of a branch or a body, put where the node stands that they belong to."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import GraphProto, NodeProto, helper

from recurra.models.names import rename, unused


def inlined(
    graph: GraphProto, body: GraphProto, given: Sequence[str], results: Sequence[str], taken: set[str]
) -> list[NodeProto]:
    """The nodes of `body`, with names of their own; its initializers go to `graph`, where the nodes are to stand.

    Args:
        given: in `graph`, what `body` takes.
        results: in `graph`, what it gives; empty names are left out.

    """
    inside = GraphProto()
    inside.CopyFrom(body)
    made = [name for node in inside.node for name in node.output if name]
    made += [tensor.name for tensor in inside.initializer]
    names = {name: unused(name, taken) for name in made}
    rename(inside, names | {value.name: name for value, name in zip(inside.input, given, strict=True)})
    graph.initializer.extend(inside.initializer)
    return [
        *inside.node,
        *(
            helper.make_node("Identity", [value.name], [result])
            for value, result in zip(inside.output, results, strict=False)
            if result
        ),
    ]
