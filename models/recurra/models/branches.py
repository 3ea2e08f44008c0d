"""If nodes whose condition stands in the file, or is made of what does: the branch that is taken replaces them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from onnx import GraphProto, ModelProto, OperatorSetIdProto, helper
from onnx.reference import ReferenceEvaluator

from recurra.models.graph import ancestors, attribute, constants, subgraphs
from recurra.models.inline import inlined
from recurra.models.names import all_names

# What torch makes conditions of: whether a rank, which it knows, is one of several.
_EVALUATED: Final = frozenset(["Constant", "Identity", "Cast", "Equal", "Not", "And", "Or", "ReduceMax", "ReduceMin"])


def settle(model: ModelProto) -> None:
    """Replaces all such nodes at any depth, in place. A branch that is never taken hides no state, then."""
    _settle(model.graph, all_names(model.graph), list(model.opset_import))


def _settle(graph: GraphProto, taken: set[str], imports: Sequence[OperatorSetIdProto]) -> None:
    while _replaced_one(graph, taken, imports):
        pass
    for node in graph.node:
        for sub in subgraphs(node):
            _settle(sub, taken, imports)


def _flag(graph: GraphProto, condition: str, imports: Sequence[OperatorSetIdProto]) -> bool | None:
    """What a condition is; None where that is not known."""
    nodes, names = ancestors([graph], [condition], through_shapes=True)
    made, stored = {name for node in nodes for name in node.output}, constants(graph)
    if not all(name in made or name in stored for name in names) or {node.op_type for node in nodes} - _EVALUATED:
        return None
    weights = [tensor for tensor in graph.initializer if tensor.name in names]
    part = helper.make_graph(nodes, "condition", [], [helper.make_empty_tensor_value_info(condition)], weights)
    (value,) = ReferenceEvaluator(helper.make_model(part, opset_imports=imports)).run(None, {})
    return bool(np.asarray(value).reshape(-1)[0])


def _replaced_one(graph: GraphProto, taken: set[str], imports: Sequence[OperatorSetIdProto]) -> bool:
    for index, node in enumerate(graph.node):
        flag = _flag(graph, node.input[0], imports) if node.op_type == "If" else None
        if flag is not None:
            branch = attribute(node, "then_branch" if flag else "else_branch")
            nodes = inlined(graph, branch, [], node.output, taken)
            del graph.node[index]
            for each in reversed(nodes):
                graph.node.insert(index, each)
            return True
    return False
