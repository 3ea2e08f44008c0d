"""Values that a Loop or a Scan carries from one iteration to the next."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from onnx import GraphProto, NodeProto, TensorProto

from recurra.models.graph import STANDARD, attribute, constant, constants, reads, subgraphs

# Ops that put a timestep's output beside those of the timesteps before.
_GATHERING: Final = frozenset(["Concat", "SequenceInsert", "ScatterElements", "ScatterND"])


@dataclass(frozen=True)
class Carried:
    """One carried value.

    Attributes:
        source, result: positions of its first and last value among the node's inputs and outputs.
        before, after: its names in the body, at the start and the end of an iteration.

    """

    source: int
    result: int
    before: str
    after: str


def is_loop(node: NodeProto) -> bool:
    """Whether the node is a Loop or a Scan."""
    return node.op_type in ("Loop", "Scan") and node.domain in STANDARD


def body_of(node: NodeProto) -> GraphProto:
    """The body of a Loop or Scan."""
    (body,) = subgraphs(node)
    return body


def carried(node: NodeProto) -> list[Carried]:
    """All values that a Loop or Scan carries, in their order."""
    body = body_of(node)
    if node.op_type == "Loop":  # the trip count and the condition come first
        first, shift, count = 2, 1, len(node.input) - 2
    else:
        first, shift, count = 0, 0, len(node.input) - int(attribute(node, "num_scan_inputs", 0))
    return [
        Carried(first + index, index, body.input[first + index].name, body.output[shift + index].name)
        for index in range(count)
    ]


def is_invariant(body: GraphProto, value: Carried) -> bool:
    """Whether it is handed on as it came: a weight, or a size."""
    return plain(body, value.after) == value.before


def is_accumulator(body: GraphProto, value: Carried) -> bool:
    """Whether it only gathers outputs: it is put together with something new, and nothing else reads it."""
    kind = next(each.type for each in body.input if each.name == value.before)
    if kind.HasField("sequence_type"):
        return True
    end = plain(body, value.after)
    maker = next((node for node in body.node if end in node.output), None)
    if maker is None or maker.op_type not in _GATHERING:
        return False
    taken = maker.input if maker.op_type == "Concat" else maker.input[:1]
    aliases = {value.before}
    for node in body.node:
        if node.op_type == "Identity" and node.input[0] in aliases:
            aliases.add(node.output[0])
    readers = [node for node in body.node if node.op_type != "Identity" and reads(node) & aliases]
    return bool(set(taken) & aliases) and readers == [maker]


def is_read(body: GraphProto, value: Carried) -> bool:
    """Whether an iteration depends on it; an exporter may carry the last output for those who ask for it after."""
    return any(value.before in reads(node) for node in body.node) or any(
        value.before == output.name for output in body.output
    )


def runs_over_time(graph: GraphProto, loop: NodeProto, sizes: Collection[object]) -> bool:
    """Whether a Loop's iterations may be timesteps: their number is computed, or one of the `sizes` of the inputs."""
    if loop.op_type == "Scan":
        return True
    body = body_of(loop)
    going = plain(body, body.output[0].name)
    trips = constants(graph).get(loop.input[0])
    if (going != body.input[1].name and going not in constants(body)) or trips is None:
        return True
    return _number(trips) in sizes


def plain(body: GraphProto, name: str) -> str:
    """The value that `name` is, behind Identity nodes."""
    maker = {node.output[0]: node.input[0] for node in body.node if node.op_type == "Identity"}
    while name in maker:
        name = maker[name]
    return name


def _number(tensor: TensorProto) -> int:
    return int(constant(tensor).reshape(-1)[0])
