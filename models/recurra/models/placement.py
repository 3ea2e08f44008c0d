"""The nodes of a model on a GPU that run on the CPU all the same, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from onnx import GraphProto, NodeProto

from recurra.models import scanned
from recurra.models.graph import constants, subgraphs, walk
from recurra.models.provider import CPU
from recurra.models.session import Assigned

_SIZES: Final = ("Shape", "Size")
_OWN: Final = "Gather"  # that the runtime makes itself: the sizes behind a Transpose that it took away
_COUNTED: Final = 2  # a Loop's body starts with its counter and its condition


@dataclass(frozen=True)
class Stray:
    """A node on the CPU.

    Attributes:
        sizes: it works on sizes and counts, which are on the host anyway; any other costs a copy there and back.

    """

    op: str
    name: str
    reason: str
    sizes: bool


def strays(graph: GraphProto, assigned: Iterable[Assigned]) -> tuple[Stray, ...]:
    """Those of `assigned` that the CPU got, explained by the `graph`, those that compute first."""
    nodes = {(node.op_type, node.name): node for node in walk(graph)}
    light = {(node.op_type, node.name) for node in _of_sizes(graph, set())}
    found = []
    for _, op, name in (node for node in assigned if node.provider == CPU):
        node = nodes.get((op, name))
        sizes = (op, name) in light or (node is None and op == _OWN)
        found.append(Stray(op, name, _reason(node, sizes=sizes), sizes))
    return tuple(sorted(found, key=lambda stray: stray.sizes))


def _reason(node: NodeProto | None, *, sizes: bool) -> str:
    if sizes:
        return "it works on sizes and counts, which are on the host"
    lack = scanned.lack(node) if node else ""
    return f"the CUDA provider has no kernel for it: {lack}" if lack else "the CUDA provider has no kernel for it"


def _of_sizes(graph: GraphProto, outer: Collection[str]) -> Iterator[NodeProto]:
    """The nodes, at any depth, whose every input comes of sizes, counters or constants."""
    known = {*outer, *constants(graph)}
    for node in graph.node:
        inputs = [name for name in node.input if name]
        bodies = subgraphs(node)
        if not bodies and (node.op_type in _SIZES or all(name in known for name in inputs)):
            known |= set(node.output)
            yield node
        for body in bodies:
            counted = [value.name for value in body.input[:_COUNTED]] if node.op_type == "Loop" else []
            yield from _of_sizes(body, {*known, *counted})
