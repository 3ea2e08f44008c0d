"""Loops that only count: sure, whatever the data, to run once for each timestep of a sequence that they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from onnx import GraphProto, NodeProto, TypeProto

from recurra.models.carried import Carried, body_of, carried, plain
from recurra.models.graph import attribute, reads
from recurra.models.names import all_names
from recurra.models.sizes import Number, Sizes, Whole, dims, size

_FOREVER: Final = 2**31 - 1  # a trip count from here on is no limit
_TURN, _NEXT = Number(turns=1), Number(turns=1, plus=1)
_LESS: Final = ("Less", "LessOrEqual")
_MORE: Final = ("Greater", "GreaterOrEqual")


class Bound(NamedTuple):
    """Two numbers of which the first must be less than the second."""

    before: Number
    end: Number


class Read(NamedTuple):
    """What an iteration takes of a sequence: the node that does, the sequence outside, and the axis of time."""

    node: NodeProto
    sequence: str
    axis: int


class Stack(NamedTuple):
    """What an iteration adds to a list, and the node behind the Loop that stacks the list."""

    value: str
    node: NodeProto


@dataclass(frozen=True)
class Counted:
    """A Loop that does.

    Attributes:
        lists: of carried values that are lists, by their source.

    """

    reads: list[Read]
    lists: dict[int, list[Stack]]


def counted(graphs: list[GraphProto], loop: NodeProto, kinds: Mapping[str, TypeProto]) -> Counted | None:
    """What is known of a Loop in the last of `graphs`, which lies in those before it; None where that is not enough."""
    reader = _Reader(graphs, loop, kinds)
    timesteps = reader.timesteps()
    found = reader.reads(timesteps) if timesteps is not None else []
    lists = {value.source: reader.stacks(value) for value in carried(loop) if reader.is_list(value)}
    return Counted(found, lists) if found and all(lists.values()) else None


class _Reader:
    def __init__(self, graphs: list[GraphProto], loop: NodeProto, kinds: Mapping[str, TypeProto]) -> None:
        self._graph, self._loop, self._body, self._types = graphs[-1], loop, body_of(loop), kinds
        self._outside = Sizes(graphs, kinds)
        turn, self._going = self._body.input[0], self._body.input[1].name
        known = {turn.name: Whole(len(turn.type.tensor_type.shape.dim), (_TURN,))}
        for value in carried(loop):
            known |= self._counter(value, graphs)
        self._inside = Sizes([*graphs, self._body], kinds, known)

    def _counter(self, value: Carried, graphs: list[GraphProto]) -> dict[str, Whole]:
        """A carried value that is the number of the iteration: from 0 it goes up by 1."""
        start = self._outside.whole(self._loop.input[value.source])
        if start is None or start.parts != (Number(),):
            return {}
        guess = {value.before: Whole(start.rank, (_TURN,))}
        after = Sizes([*graphs, self._body], self._types, guess).whole(value.after)
        return guess if after == Whole(start.rank, (_NEXT,)) else {}

    def timesteps(self) -> Number | None:
        """How often the Loop runs where that is at least once: a size, or a constant."""
        trips, going = self._loop.input[:2]
        limit = self._outside.number(trips) if trips else Number(plus=_FOREVER)
        starts = self._bounds(going, self._outside) if going else []
        bounds = self._bounds(self._body.output[0].name, self._inside)
        if limit is None or starts is None or bounds is None:
            return None
        if not limit.size and limit.plus >= _FOREVER:
            limit = next((end for before, end in bounds if before == _NEXT), limit)
        lasts = all(end == limit and before.turns == 1 and before.plus <= 1 for before, end in bounds)
        begins = all(end == limit and not before.turns and before.plus <= 0 for before, end in starts)
        ends = (limit.size and not limit.plus) or 0 < limit.plus < _FOREVER
        return limit if begins and lasts and ends else None

    def _bounds(self, name: str, sizes: Sizes) -> list[Bound] | None:
        """What must hold for a condition to hold; None: it needs more."""
        found, names = [], [name]
        for each in names:  # which grow
            node = sizes.maker(each)
            if sizes.fixed(each) is None and node is not None and node.op_type == "And":
                names += [one for one in dict.fromkeys(node.input) if one not in names]
                continue
            bounds = self._bound(each, sizes)
            if bounds is None:
                return None
            found += bounds
        return found

    def _bound(self, name: str, sizes: Sizes) -> list[Bound] | None:
        """The same of a condition that is not put together."""
        fixed = sizes.fixed(name)
        if fixed is not None:
            return [] if fixed.all() else None
        if sizes is self._inside and plain(self._body, name) == self._going:  # it went on until now
            return []
        node = sizes.maker(name)
        if node is None or node.op_type not in _LESS + _MORE:
            return None
        before, end = [sizes.number(each) for each in node.input][:: 1 if node.op_type in _LESS else -1]
        if before is None or end is None or before.size or end.turns:
            return None
        return [Bound(before, end._replace(plus=end.plus + node.op_type.endswith("Equal")))]

    def reads(self, timesteps: Number) -> list[Read]:
        """Of all sequences that are so long, by the number of the iteration."""
        inside = all_names(self._body)
        found = []
        for node in self._body.node:
            if node.op_type == "Gather" and self._inside.whole(node.input[1]) == Whole(0, (_TURN,)):
                sequence, axis = plain(self._body, node.input[0]), int(attribute(node, "axis", 0))
                sizes = dims(self._types.get(sequence)) if sequence not in inside else None
                if sizes and size(sizes[axis]) == timesteps:
                    found.append(Read(node, sequence, axis))
        return found

    def is_list(self, value: Carried) -> bool:
        return self._body.input[value.source].type.HasField("sequence_type")

    def stacks(self, value: Carried) -> list[Stack]:
        """How the list is used; empty where it is used for anything but stacks."""
        start, insert = self._outside.maker(self._loop.input[value.source]), self._inside.maker(value.after)
        if start is None or start.op_type != "SequenceEmpty" or insert is None or insert.op_type != "SequenceInsert":
            return []
        inner = [node for node in self._body.node if {value.before, insert.output[0]} & reads(node)]
        if inner != [insert] or list(insert.input[:1]) != [value.before] or len(insert.input) != 2:  # noqa: PLR2004
            return []
        end = self._loop.output[value.result]
        behind = [node for node in self._graph.node if end in reads(node)]
        if any(node.op_type != "ConcatFromSequence" or not attribute(node, "new_axis", 0) for node in behind):
            return []
        given = end in {output.name for output in self._graph.output}
        return [] if given else [Stack(insert.input[1], node) for node in behind]
