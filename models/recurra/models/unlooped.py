"""Counted Loops as Scans.

On a GPU a Loop copies its condition to the host and waits for it at every timestep, and what makes the condition runs
on the host; a Scan has none. What cannot be proven to be the same stays a Loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper, numpy_helper

from recurra.models.carried import body_of, carried, plain
from recurra.models.counted import Counted, counted
from recurra.models.dead import bury
from recurra.models.graph import STANDARD, ancestors, attribute, reads, subgraphs, walk
from recurra.models.names import all_names, unused
from recurra.models.sizes import dims, types
from recurra.models.slices import trim

_OLDEST: Final = 11  # the opset whose Scan takes axes that are counted from the end
_MOST: Final = 100  # Loops that are looked at; behind each the types of the whole model are inferred anew


def rewrite(model: ModelProto, states: Mapping[str, str]) -> int:
    """Replaces counted Loops at any depth, in place; how many.

    Args:
        states: of the model, the output by the input. One has the same shape at every timestep.

    """
    if any(entry.domain in STANDARD and entry.version < _OLDEST for entry in model.opset_import):
        return 0
    if not any(node.op_type == "Loop" for node in walk(model.graph)):
        return 0
    trim(model.graph)
    return _Rewriter(model, states).rewrite([model.graph])


class _Rewriter:
    def __init__(self, model: ModelProto, states: Mapping[str, str]) -> None:
        self._model, self._states = model, states
        self._taken = all_names(model.graph)
        self._types: dict[str, TypeProto] = {}
        self._left = _MOST

    def rewrite(self, graphs: list[GraphProto]) -> int:
        """The last of `graphs`, which lies in those before it."""
        count = 0
        for node in graphs[-1].node:
            count += sum(self.rewrite([*graphs, sub]) for sub in subgraphs(node))
            if node.op_type == "Loop" and node.domain in STANDARD and self._left:
                self._left -= 1
                count += self._replace(graphs, node)
        return count

    def _replace(self, graphs: list[GraphProto], loop: NodeProto) -> bool:
        self._types = self._types or types(self._model)
        found = counted(graphs, loop, self._types)
        if found is None or any(loop.input[each.source] not in self._types for each in carried(loop)):
            return False
        writer = _Writer(graphs[-1], loop, found, self._types, self._taken)
        swapped = writer.write()
        _swap(swapped)
        graphs[-1].initializer.extend(writer.initializers)
        kinds = types(self._model)
        if self._fits(graphs[-1], loop, kinds):
            self._types = kinds
            return True
        _swap(swapped)
        return False

    def _fits(self, graph: GraphProto, scan: NodeProto, kinds: Mapping[str, TypeProto]) -> bool:
        """Whether every carried value keeps its shape, and every output has a known rank, which the Scan is told."""
        body = body_of(scan)
        count = len(scan.input) - int(attribute(scan, "num_scan_inputs"))
        for index, value in enumerate(body.output):
            kind = kinds.get(value.name)
            if index < count:
                start, after = kinds.get(scan.input[index]), dims(kind)
                same = after is not None and None not in after and after == dims(start)
                if not same and not self._is_state(graph, scan.input[index], scan.output[index]):
                    return False
                kind = start
            if dims(kind) is None:
                return False
            value.CopyFrom(_value(value.name, kind))
        return True

    def _is_state(self, graph: GraphProto, start: str, end: str) -> bool:
        """Whether it is carried from a state's input to that state's output."""
        if graph is not self._model.graph:
            return False
        output = self._states.get(plain(graph, start), "")
        return bool(output) and plain(graph, output) == plain(graph, end)


def _swap(pairs: Sequence[tuple[NodeProto, NodeProto]]) -> None:
    for one, other in pairs:
        kept = NodeProto()
        kept.CopyFrom(one)
        one.CopyFrom(other)
        other.CopyFrom(kept)


def _value(name: str, kind: TypeProto | None, without: int | None = None) -> ValueInfoProto:
    """A value of a type, of its sizes those that are numbers, without one of its axes."""
    sizes = [each if isinstance(each, int) else None for each in dims(kind) or ()]
    if without is not None:
        del sizes[without]
    kind = kind or TypeProto()
    return helper.make_tensor_value_info(name, kind.tensor_type.elem_type, None if dims(kind) is None else sizes)


class _State(NamedTuple):
    """A carried value: in the body before and after an iteration, and outside before and after all."""

    before: str
    after: str
    start: str
    end: str
    kind: TypeProto


class _Given(NamedTuple):
    """What is stacked: in the body, outside, and along which axis."""

    value: str
    name: str
    axis: int


class _Writer:
    def __init__(
        self, graph: GraphProto, loop: NodeProto, found: Counted, kinds: Mapping[str, TypeProto], taken: set[str]
    ) -> None:
        self.initializers: list[TensorProto] = []
        self._loop, self._found, self._types, self._taken = loop, found, kinds, taken
        self._body = GraphProto()
        self._body.CopyFrom(body_of(loop))
        self._wanted = {value.name for value in graph.output}.union(*map(reads, graph.node))
        self._stacks = [stack for stacks in found.lists.values() for stack in stacks]

    def write(self) -> list[tuple[NodeProto, NodeProto]]:
        """Nodes and what is to stand in their place."""
        loop, values = self._loop, carried(self._loop)
        given = [
            _Given(after.name, name, 0)
            for after, name in zip(self._body.output[1 + len(values) :], loop.output[len(values) :], strict=False)
            if name in self._wanted
        ]
        behind = []
        for stack in self._stacks:
            name = self._name("stack")
            given.append(_Given(stack.value, name, int(attribute(stack.node, "axis"))))
            behind.append((stack.node, helper.make_node("Identity", [name], list(stack.node.output))))
        states = [
            _State(value.before, value.after, start, loop.output[value.result], self._types[start])
            for value, start in zip(values, loop.input[2:], strict=True)
            if value.source not in self._found.lists
        ]
        return [(loop, self._scan(self._needed(states, given), given)), *behind]

    def _needed(self, states: list[_State], given: list[_Given]) -> list[_State]:
        """The states that are read in the body or behind the Loop, and the number of the iteration if that is read."""
        taken = {read.node.output[0] for read in self._found.reads}
        kept = [node for node in self._body.node if taken.isdisjoint(node.output)]
        del self._body.node[:]
        self._body.node.extend(kept)
        turn, going = self._body.input[:2]
        for state in list(states):
            others = [each.after for each in states if each is not state] + [each.value for each in given]
            if (
                state.end not in self._wanted
                and state.before not in ancestors([self._body], others, through_shapes=True)[1]
            ):
                states.remove(state)
        _, names = ancestors(
            [self._body], [*(each.after for each in states), *(each.value for each in given)], through_shapes=True
        )
        if turn.name in names:
            first, one, after = self._name("first"), self._name("one"), self._name("turn")
            shape = [1] * len(turn.type.tensor_type.shape.dim)
            self.initializers.append(numpy_helper.from_array(np.zeros(shape, np.int64), first))
            self._body.initializer.append(numpy_helper.from_array(np.ones(shape, np.int64), one))
            self._body.node.append(helper.make_node("Add", [turn.name, one], [after]))
            states.append(_State(turn.name, after, first, "", helper.make_tensor_type_proto(TensorProto.INT64, shape)))
        if going.name in names:
            shape = [1] * len(going.type.tensor_type.shape.dim)
            self._body.initializer.append(numpy_helper.from_array(np.ones(shape, np.bool_), going.name))
        return states

    def _scan(self, states: list[_State], given: list[_Given]) -> NodeProto:
        reads, body = self._found.reads, self._body
        inputs = [_value(each.before, each.kind) for each in states]
        inputs += [_value(read.node.output[0], self._types[read.sequence], read.axis) for read in reads]
        made = [each.after for each in states] + [each.value for each in given]
        outputs = [ValueInfoProto(name=name) for name in self._owned(made)]
        graph = helper.make_graph(list(body.node), body.name or "timestep", inputs, outputs, list(body.initializer))
        bury(graph)
        scan = helper.make_node(
            "Scan",
            [*(each.start for each in states), *(read.sequence for read in reads)],
            [*(each.end or self._name("unread") for each in states), *(each.name for each in given)],
            name=self._loop.name,
            body=graph,
            num_scan_inputs=len(reads),
            scan_input_axes=[read.axis for read in reads],
        )
        if given:
            scan.attribute.append(helper.make_attribute("scan_output_axes", [each.axis for each in given]))
        return scan

    def _owned(self, names: list[str]) -> list[str]:
        """The body's outputs: each is made in the body, and stands there once."""
        made = {name for node in self._body.node for name in node.output}
        owned = []
        for name in names:
            if name not in made or name in owned:
                self._body.node.append(helper.make_node("Identity", [name], [self._name(f"{name}/given")]))
                name = self._body.node[-1].output[0]  # noqa: PLW2901
            owned.append(name)
        return owned

    def _name(self, what: str) -> str:
        return unused(f"{self._loop.name or 'Loop'}/{what}", self._taken)
