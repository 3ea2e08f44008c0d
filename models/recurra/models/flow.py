"""Where a graph's states come from and go to: values followed through ops that only rearrange them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from onnx import GraphProto, NodeProto

from recurra.models.graph import STANDARD, is_recurrent, subgraphs

# A value at any depth: two branches may use one name, so the number of the scope that defines it comes first.
Value = tuple[int, str]

# Position of the initial state among a native node's inputs, and of the final state among its outputs.
KINDS: Final = {"h": (5, 1), "c": (6, 2)}

# Ops that only rearrange; all inputs of Concat are data, of the others the first.
_REARRANGE: Final = frozenset(
    [
        "Identity",
        "Cast",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Split",
        "Gather",
        "Expand",
        "Dropout",
        "Concat",
    ]
)


@dataclass(frozen=True)
class Site:
    """A native recurrent node, or a Gather, and the values that it reads and makes.

    Attributes:
        nested: it lies in a branch or a body.

    """

    number: int
    node: NodeProto
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value | None, ...]
    nested: bool


class Flow:
    """Which values each value is a rearrangement of, in a graph and its If branches and bodies."""

    def __init__(self, graph: GraphProto) -> None:
        self.sites: list[Site] = []
        self.gathers: list[Site] = []
        self._sources: dict[Value, list[Value]] = {}
        self._scopes = 0
        self.names = self._scope(graph, {})

    def origins(self, value: Value | None) -> set[Value]:
        """The values that `value` is put together of, that are themselves no rearrangement."""
        found, seen = set[Value](), set[Value]()
        stack = [] if value is None else [value]
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            sources = self._sources.get(value)
            if sources:
                stack.extend(sources)
            else:
                found.add(value)
        return found

    def _scope(self, graph: GraphProto, outer: dict[str, Value]) -> dict[str, Value]:
        scope = self._scopes
        self._scopes += 1
        names = dict(outer)
        names |= {value.name: (scope, value.name) for value in graph.input}
        names |= {tensor.name: (scope, tensor.name) for tensor in graph.initializer}
        for node in graph.node:
            made = [(scope, name) for name in node.output]
            names |= {name: (scope, name) for name in node.output if name}
            self._node(node, [names.get(name) for name in node.input], made, names, nested=bool(outer))
        return names

    def _node(
        self, node: NodeProto, taken: list[Value | None], made: list[Value], names: dict[str, Value], *, nested: bool
    ) -> None:
        if is_recurrent(node):
            outputs = tuple(value if value[1] else None for value in made)
            self.sites.append(Site(len(self.sites), node, tuple(taken), outputs, nested))
            return
        if node.op_type == "Gather" and node.domain in STANDARD:
            self.gathers.append(Site(len(self.gathers), node, tuple(taken), tuple(made), nested))
        if node.op_type in _REARRANGE and node.domain in STANDARD:
            data = taken if node.op_type == "Concat" else taken[:1]
            for value in made:
                self._sources[value] = [source for source in data if source]
        for branch in subgraphs(node):
            inner = self._scope(branch, names)
            if node.op_type == "If":
                for value, result in zip(made, branch.output, strict=False):
                    if result.name in inner:
                        self._sources.setdefault(value, []).append(inner[result.name])
