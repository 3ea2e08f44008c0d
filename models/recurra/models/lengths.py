"""A graph that takes rows of several lengths, padded to one: it stops each row's states at the row's own end.

Native nodes do so by themselves (sequence_lens). What a Loop or Scan carries is held with a Where in its body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from recurra.models.carried import Carried, body_of, carried, is_loop, plain
from recurra.models.graph import attribute
from recurra.models.layout import StatePort
from recurra.models.names import all_names, unused
from recurra.models.seats import natives, places

LENGTHS: Final = "recurra_lengths"
_POSITION: Final = 4  # of sequence_lens among a native node's inputs


def with_lengths(model: ModelProto, states: Mapping[str, StatePort]) -> str:
    """Gives the graph a new input, int32 (N,), that tells each row's timesteps; changes `model` in place.

    Args:
        states: by the graph input that takes them.

    Returns:
        the input's name; empty, and nothing done, where no native node, Loop or Scan holds a state.

    """
    graph = model.graph
    taken = all_names(graph)
    name = unused(LENGTHS, taken)
    outside = [place.node for place in natives(graph)]  # those in bodies run one timestep a time
    for node in outside:
        while len(node.input) <= _POSITION:
            node.input.append("")
        node.input[_POSITION] = node.input[_POSITION] or name
    holder = _Holder(graph, name, taken, states)
    held = [holder.hold(place.graphs[-1], place.node) for place in list(places(graph)) if is_loop(place.node)]
    if not outside and not any(held):
        return ""
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, [None]))
    return name


class _Holder:
    """Changes the Loops and Scans of one graph."""

    def __init__(self, graph: GraphProto, lengths: str, taken: set[str], states: Mapping[str, StatePort]) -> None:
        self._top, self._taken, self._states = graph, taken, states
        self._lengths, self._wide = lengths, ""

    def hold(self, graph: GraphProto, loop: NodeProto) -> int:
        """Holds the states that one Loop or Scan carries; how many."""
        found = [(each, self._states[start]) for each in carried(loop) if (start := self._start(graph, loop, each))]
        if found:
            body = body_of(loop)
            counter = body.input[0].name if loop.op_type == "Loop" else self._counted(graph, loop)
            alive = self._add(body, "Less", [counter, self._wide_lengths()], "alive")
            for each, port in found:
                result = body.output[each.result + (loop.op_type == "Loop")]
                result.name = self._held(body, each, port, alive)
        return len(found)

    def _start(self, graph: GraphProto, loop: NodeProto, each: Carried) -> str:
        """The state that a carried value starts from, empty if that is none with a batch axis."""
        name = plain(graph, loop.input[each.source])
        return name if name in self._states and self._states[name].batched else ""

    def _held(self, body: GraphProto, each: Carried, port: StatePort, alive: str) -> str:
        shape = [1] * (len(port.spec.shape) + 1)
        shape[port.spec.batch_axis] = -1
        mask = self._add(body, "Reshape", [alive, self._constant(body, shape)], "mask")
        return self._add(body, "Where", [mask, each.after, each.before], "held")

    def _counted(self, graph: GraphProto, scan: NodeProto) -> str:
        """A Scan does not count its iterations: it gets one more input to scan, the number of the timestep."""
        body = body_of(scan)
        count = int(attribute(scan, "num_scan_inputs"))
        axes = list(attribute(scan, "scan_input_axes", [0] * count))
        sizes = self._new(graph, scan, "Shape", [scan.input[-count]])
        sizes = self._new(graph, scan, "Gather", [sizes, self._constant(graph, axes[0])])
        by = [self._constant(graph, 0), sizes, self._constant(graph, 1)]
        directions = list(attribute(scan, "scan_input_directions", [0] * count))
        settings = {"num_scan_inputs": count + 1, "scan_input_axes": [*axes, 0]}
        settings["scan_input_directions"] = [*directions, directions[0]]
        for old in [each for each in scan.attribute if each.name in settings]:
            scan.attribute.remove(old)
        scan.attribute.extend(helper.make_attribute(key, value) for key, value in settings.items())
        scan.input.append(self._new(graph, scan, "Range", by))
        name = unused(f"{LENGTHS}/timestep", self._taken)
        body.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, []))
        return name

    def _wide_lengths(self) -> str:
        """The lengths as int64, made at the top."""
        if not self._wide:
            self._wide = unused(f"{LENGTHS}/wide", self._taken)
            self._top.node.insert(0, helper.make_node("Cast", [self._lengths], [self._wide], to=TensorProto.INT64))
        return self._wide

    def _add(self, body: GraphProto, op: str, inputs: list[str], what: str) -> str:
        name = unused(f"{LENGTHS}/{what}", self._taken)
        body.node.append(helper.make_node(op, inputs, [name]))
        return name

    def _constant(self, graph: GraphProto, value: int | list[int]) -> str:
        name = unused(f"{LENGTHS}/constant", self._taken)
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def _new(self, graph: GraphProto, before: NodeProto, op: str, inputs: list[str]) -> str:
        """A node in front of `before`; the name of what it makes."""
        name = unused(f"{LENGTHS}/{op.lower()}", self._taken)
        place = next(index for index, node in enumerate(graph.node) if node is before)
        graph.node.insert(place, helper.make_node(op, inputs, [name]))
        return name
