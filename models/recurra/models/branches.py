"""If nodes whose condition stands in the file, or is made of what does: the branch that is taken replaces them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import prod
from typing import Final

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from recurra.models.graph import STANDARD, attribute, subgraphs
from recurra.models.inline import inlined
from recurra.models.names import all_names

# What torch makes conditions of: whether a rank, which it knows, is one of several.
_EVALUATED: Final = frozenset(["Constant", "Identity", "Cast", "Equal", "Not", "And", "Or", "ReduceMax", "ReduceMin"])
_MOST: Final = 64  # nodes that a condition is made of, and elements of a constant


def settle(model: ModelProto) -> None:
    """Replaces all such nodes at any depth, in place. A branch that is never taken hides no state, then."""
    _settle(model.graph, all_names(model.graph), list(model.opset_import))


def _settle(graph: GraphProto, taken: set[str], imports: Sequence[OperatorSetIdProto]) -> None:
    waiting, nodes = deque(graph.node), list[NodeProto]()
    values = _Values(graph, imports)
    while waiting:
        node = waiting.popleft()
        flag = values.flag(node.input[0]) if node.op_type == "If" else None
        if flag is None:
            nodes.append(node)
            values.add(node)
            continue
        branch = attribute(node, "then_branch" if flag else "else_branch")
        before = len(graph.initializer)
        waiting.extendleft(reversed(inlined(graph, branch, [], node.output, taken)))
        values.store(graph.initializer[before:])
    del graph.node[:]
    graph.node.extend(nodes)
    for node in graph.node:
        for sub in subgraphs(node):
            _settle(sub, taken, imports)


class _Values:
    """What is made of constants alone."""

    def __init__(self, graph: GraphProto, imports: Sequence[OperatorSetIdProto]) -> None:
        self._imports = imports
        self._nodes: list[NodeProto] = []  # in order
        self._maker: dict[str, int] = {}
        self._stored: dict[str, TensorProto] = {}
        self.store(graph.initializer)

    def store(self, tensors: Sequence[TensorProto]) -> None:
        self._stored |= {each.name: each for each in tensors if len(each.dims) <= 1 and prod(each.dims) <= _MOST}

    def add(self, node: NodeProto) -> None:
        if node.op_type in _EVALUATED and node.domain in STANDARD:
            self._maker |= dict.fromkeys(node.output, len(self._nodes))
            self._nodes.append(node)

    def flag(self, condition: str) -> bool | None:
        """What a condition is; None where that is not known."""
        names, makers = [condition], set[int]()
        for name in names:  # which grow
            maker = self._maker.get(name)
            if (maker is None and name not in self._stored) or len(makers) > _MOST:
                return None
            if maker is not None and maker not in makers:
                makers.add(maker)
                names += filter(None, self._nodes[maker].input)
        nodes = [self._nodes[maker] for maker in sorted(makers)]
        weights = [self._stored[name] for name in dict.fromkeys(names) if name in self._stored]
        part = helper.make_graph(nodes, "condition", [], [helper.make_empty_tensor_value_info(condition)], weights)
        return self._evaluated(part)

    def _evaluated(self, part: GraphProto) -> bool | None:
        try:
            (value,) = ReferenceEvaluator(helper.make_model(part, opset_imports=self._imports)).run(None, {})
            return bool(np.asarray(value).reshape(-1)[0])
        except Exception:  # noqa: BLE001 # it raises all sorts of them for what it does not know
            return None
