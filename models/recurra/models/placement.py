"""The nodes of a model on a GPU that run on the CPU all the same, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from onnx import GraphProto, NodeProto

from recurra.models import scanned
from recurra.models.graph import constants, subgraphs
from recurra.models.provider import CPU
from recurra.models.session import Assigned

_SIZES: Final = ("Shape", "Size")
# Of what the runtime itself adds to a graph: CUDA has these for every type, and gets them but for sizes.
_ADDED: Final = ("Cast", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze")
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
    """Those of `assigned` that the CPU got, explained by the `graph` that is run, those that compute first."""
    judged = list(_judged(graph, set()))
    nodes = {(node.op_type, node.name): node for node, _ in judged}
    heavy = {(node.op_type, node.name) for node, sizes in judged if not sizes}
    found = []
    for _, op, name in (node for node in assigned if node.provider == CPU):
        node = nodes.get((op, name))
        sizes = (op, name) not in heavy if node else op in _ADDED
        found.append(Stray(op, name, _reason(node, sizes=sizes), sizes))
    return tuple(sorted(found, key=lambda stray: stray.sizes))


def _reason(node: NodeProto | None, *, sizes: bool) -> str:
    if sizes:
        return "it works on sizes and counts, which are on the host"
    lack = scanned.lack(node) if node else ""
    return f"the CUDA provider has no kernel for it: {lack}" if lack else "the CUDA provider has no kernel for it"


def _judged(graph: GraphProto, outer: Collection[str]) -> Iterator[tuple[NodeProto, bool]]:
    """The nodes, at any depth, and whether every input of each comes of sizes, counters or constants."""
    known = {*outer, *constants(graph)}
    for node in graph.node:
        bodies = subgraphs(node)
        sizes = not bodies and (node.op_type in _SIZES or all(name in known for name in node.input if name))
        if sizes:
            known |= set(node.output)
        yield node, sizes
        for body in bodies:
            counted = [value.name for value in body.input[:_COUNTED]] if node.op_type == "Loop" else []
            yield from _judged(body, {*known, *counted})
