"""Where a graph keeps states to itself: native nodes, and what Loops and Scans carry, at the top and in If branches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto

from recurra.models import initial
from recurra.models.carried import body_of, carried, is_accumulator, is_invariant, is_loop, is_read, runs_over_time
from recurra.models.flow import KINDS
from recurra.models.graph import ancestors, attribute, data_inputs, dims_of, is_recurrent, label
from recurra.models.initial import Group, Initial
from recurra.models.refusal import ModelRefused
from recurra.models.roles import is_named
from recurra.models.signature import Array


@dataclass(frozen=True, eq=False)
class Place:
    """A node, the graph that it is in, and before it the graphs around that one, the top first."""

    node: NodeProto
    graphs: tuple[GraphProto, ...]


@dataclass(frozen=True, eq=False)
class Seat:
    """One state of a node.

    Attributes:
        kind: its name within the layer: "h", "c", "state".
        source, result: positions of its first and last value among the node's inputs and outputs.

    """

    place: Place
    kind: str
    source: int
    result: int

    @property
    def node(self) -> NodeProto:
        """The node that keeps it."""
        return self.place.node

    @property
    def start(self) -> str:
        """The name of its first value, empty for zeros."""
        return self.node.input[self.source] if self.source < len(self.node.input) else ""


@dataclass(frozen=True, eq=False)
class Kept:
    """A state found in a seat.

    Attributes:
        fresh: of one session; None for zeros of the native node's own shape.
        batch_axis: None where the graph has none.

    """

    seat: Seat
    fresh: Array | None
    batch_axis: int | None


def places(graph: GraphProto, outer: tuple[GraphProto, ...] = ()) -> Iterator[Place]:
    """All nodes at the top and in If branches."""
    graphs = (*outer, graph)
    for node in graph.node:
        yield Place(node, graphs)
        if node.op_type == "If":
            for name in ("then_branch", "else_branch"):
                yield from places(attribute(node, name), graphs)


def native_seats(place: Place) -> list[Seat]:
    """The states of a native node."""
    kinds = ("h", "c") if place.node.op_type == "LSTM" else ("h",)
    return [Seat(place, kind, *KINDS[kind]) for kind in kinds]


def reached(model: ModelProto, seat: Seat) -> set[str]:
    """The graph inputs whose values, not only their sizes, decide the seat's first value."""
    if not seat.start:
        return set()
    _, names = ancestors(seat.place.graphs, [seat.start], through_shapes=False)
    return names & {value.name for value in data_inputs(model.graph)}


def evaluate(model: ModelProto, seats: Sequence[Seat]) -> dict[Seat, Initial]:
    """The first values of all seats that have one; one run of the runtime for each graph that they are in."""
    found: dict[Seat, Initial] = {}
    for graphs in {id(seat.place.graphs[-1]): seat.place.graphs for seat in seats if seat.start}.values():
        here = [seat for seat in seats if seat.start and seat.place.graphs[-1] is graphs[-1]]
        values = initial.evaluate(model, graphs, [seat.start for seat in here])
        found |= {seat: values[seat.start] for seat in here}
    return found


class Loops:
    """The states that Loops and Scans keep.

    Attributes:
        doubts: what was left as it is, and why, for people: it may explain why a model is refused.

    """

    def __init__(self, model: ModelProto, exposed: set[str]) -> None:
        """`exposed` are the graph inputs that are known to be states."""
        self.doubts: list[str] = []
        self._model = model
        self._exposed = exposed
        self._sizes = {size for value in data_inputs(model.graph) for size in dims_of(value)}
        self._rows = {size for value in data_inputs(model.graph) for size in dims_of(value)[:2]} - {1}
        self._free = any(not isinstance(size, int) for size in self._sizes)

    def find(self) -> list[Kept]:
        """All of them."""
        seats = [seat for place in places(self._model.graph) if is_loop(place.node) for seat in self._seats(place)]
        initials = evaluate(self._model, seats)
        batch = _batch_group(initials.values())
        return _numbered([kept for seat in seats if (kept := self._kept(seat, initials[seat], batch))])

    def _seats(self, place: Place) -> list[Seat]:
        """What the node carries that may be a state: what depends on no data and is more than a list of outputs."""
        node, body = place.node, body_of(place.node)
        values = [each for each in carried(node) if not is_invariant(body, each) and not is_accumulator(body, each)]
        values = [each for each in values if is_read(body, each)]
        values = [each for each in values if body.input[each.source].type.HasField("tensor_type")]
        if values and not runs_over_time(place.graphs[-1], node, self._sizes):
            self.doubts.append(f"{label(node)} may hold one, but runs equally often whatever the chunk's length")
            return []
        seats = []
        for each in values:
            seat = Seat(place, "state", each.source, each.result)
            inputs = reached(self._model, seat)
            if inputs - self._exposed and not inputs & self._exposed:
                self.doubts.append(
                    f"{label(node)} may hold one, but starts '{each.before}' from the data "
                    f"({', '.join(sorted(inputs))})"
                )
            elif not inputs:
                seats.append(seat)
        return seats

    def _kept(self, seat: Seat, first: Initial, batch: Group | None) -> Kept | None:
        """The state in a seat; None for a counter of timesteps, or what has no batch axis or more free sizes."""
        value = first.values[0]
        followed = {group for group in first.groups if group}
        if not followed and value.dtype.kind in "iub" and value.size == 1:
            return None
        if not followed and self._free:
            first = self._widened(seat, first)
            followed = {group for group in first.groups if group}
        where = f"{label(seat.node)}, at '{seat.start}',"
        axis = first.groups.index(batch) if batch is not None and batch in first.groups else None
        if axis is None and len(followed) == 1:
            axis = first.groups.index(next(iter(followed)))
        if value.dtype.kind not in "fiub" or len(followed) > 1 or (axis is None and first.values[0].ndim == 0):
            self.doubts.append(
                f"{where} carries a value of shape {list(value.shape)} that has no batch axis, or free sizes beside "
                "it; export the model with all sizes but batch and time fixed"
            )
            return None
        if axis is not None and is_named(first.groups[axis], "time"):
            return None
        if axis is None and len(value) in self._rows:
            first.fresh(0, where)
        return Kept(seat, first.fresh(axis, where), axis)

    def _widened(self, seat: Seat, first: Initial) -> Initial:
        """One row that the first iteration spreads over the batch, as its last value shows."""
        result = seat.node.output[seat.result] if seat.result < len(seat.node.output) else ""
        if not result:
            return first
        try:
            last = initial.evaluate(self._model, seat.place.graphs, [result])[result]
            spread = [
                np.broadcast_to(ours, theirs.shape) for ours, theirs in zip(first.values, last.values, strict=True)
            ]
        except (ModelRefused, ValueError):
            return first
        return Initial((spread[0], spread[1]), last.groups)


def _batch_group(initials: Iterable[Initial]) -> Group | None:
    """The sizes of the inputs that are most likely the batch: what most states follow."""
    counts = Counter[Group]()
    for each in initials:
        followed = {group for group in each.groups if group}
        counts.update(group for group in followed if is_named(group, "batch") or len(followed) == 1)
    named = [group for group in counts if is_named(group, "batch")]
    return next(iter(named), None) or next((group for group, _ in counts.most_common(1)), None)


def _numbered(states: Sequence[Kept]) -> list[Kept]:
    """Several states of one node are told apart by number."""
    counts = Counter(id(kept.seat.node) for kept in states)
    seen = Counter[int]()
    found = []
    for kept in states:
        node = id(kept.seat.node)
        seen[node] += 1
        kind = "state" if counts[node] == 1 else f"state_{seen[node]}"
        found.append(Kept(Seat(kept.seat.place, kind, kept.seat.source, kept.seat.result), kept.fresh, kept.batch_axis))
    return found


def natives(graph: GraphProto) -> list[Place]:
    """All native nodes that can be reached without entering a body."""
    return [place for place in places(graph) if is_recurrent(place.node)]
