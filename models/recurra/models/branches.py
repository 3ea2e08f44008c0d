"""If nodes whose condition stands in the file: the branch that is taken replaces them."""

from __future__ import annotations

from onnx import GraphProto, NodeProto, helper

from recurra.models.graph import attribute, constant, constants, subgraphs
from recurra.models.names import all_names, rename, unused


def settle(graph: GraphProto) -> None:
    """Replaces all such nodes at any depth, in place. A branch that is never taken hides no state, then."""
    _settle(graph, all_names(graph))


def _settle(graph: GraphProto, taken: set[str]) -> None:
    while _replaced_one(graph, taken):
        pass
    for node in graph.node:
        for sub in subgraphs(node):
            _settle(sub, taken)


def _replaced_one(graph: GraphProto, taken: set[str]) -> bool:
    fixed = constants(graph) if any(node.op_type == "If" for node in graph.node) else {}
    for index, node in enumerate(graph.node):
        if node.op_type == "If" and node.input[0] in fixed:
            flag = bool(constant(fixed[node.input[0]]).reshape(-1)[0])
            branch = GraphProto()
            branch.CopyFrom(attribute(node, "then_branch" if flag else "else_branch"))
            results = list(node.output)
            del graph.node[index]
            for each in reversed(_inlined(graph, branch, results, taken)):
                graph.node.insert(index, each)
            return True
    return False


def _inlined(graph: GraphProto, branch: GraphProto, results: list[str], taken: set[str]) -> list[NodeProto]:
    """The nodes of `branch`, with names of their own; its initializers go to `graph`."""
    made = [name for node in branch.node for name in node.output if name]
    made += [tensor.name for tensor in branch.initializer]
    rename(branch, {name: unused(name, taken) for name in made})
    graph.initializer.extend(branch.initializer)
    given = [value.name for value in branch.output]
    return [
        *branch.node,
        *(
            helper.make_node("Identity", [name], [result])
            for name, result in zip(given, results, strict=False)
            if result
        ),
    ]
