"""A state made an input and an output of a graph, out of If branches too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from onnx import GraphProto, helper

from recurra.models.graph import subgraphs
from recurra.models.names import all_names, unused
from recurra.models.pairs import Pair
from recurra.models.seats import Seat
from recurra.models.signature import Array

# How a state's batch size is called in the lifted graph.
BATCH: Final = "recurra_batch"


class Exposer:
    """Changes one graph in place, state by state."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._taken = all_names(graph)

    def expose(self, seats: Sequence[Seat], layer: str, fresh: Array, batch_axis: int | None) -> Pair:
        """Feeds a state from a new input and gives it out; several seats are one layer's in several branches.

        A node's own input is replaced, never the tensor behind it: exporters share one zeros tensor between h and c
        and between layers. A branch that has no such seat hands the state on as it came.
        """
        name = f"{layer}/{seats[0].kind}"
        element = helper.np_dtype_to_tensor_dtype(fresh.dtype)
        dims: list[int | str] = list(fresh.shape)
        if batch_axis is not None:
            dims.insert(batch_axis, BATCH)
        before, after = unused(name, self._taken), unused(f"{name}/next", self._taken)
        finals = {}
        for seat in seats:
            _put(seat.node.input, seat.source, before)
            finals[id(seat.place.graphs[-1])] = self._final(seat, after)
        inside = {id(each) for seat in seats for each in seat.place.graphs}
        last = self._lead_out(self._graph, inside, finals, before)
        if last != after:  # it may be an output of the graph already, as data
            self._graph.node.append(helper.make_node("Identity", [last], [after]))
        self._graph.input.append(helper.make_tensor_value_info(before, element, dims))
        self._graph.output.append(helper.make_tensor_value_info(after, element, dims))
        return Pair(name, layer, before, after, batch_axis=batch_axis, fresh=fresh, origin="lifted")

    def _final(self, seat: Seat, after: str) -> str:
        """The name of the last value, given to it if it has none."""
        name = seat.node.output[seat.result] if seat.result < len(seat.node.output) else ""
        if not name:
            name = after if len(seat.place.graphs) == 1 else unused(f"{after}/inside", self._taken)
            _put(seat.node.output, seat.result, name)
        return name

    def _lead_out(self, graph: GraphProto, inside: set[int], finals: dict[int, str], before: str) -> str:
        """The name in `graph` of the state's last value."""
        if id(graph) in finals:
            return finals[id(graph)]
        for node in graph.node:
            branches = subgraphs(node) if node.op_type == "If" else []
            if not any(id(branch) in inside for branch in branches):
                continue
            for branch in branches:
                result = self._lead_out(branch, inside, finals, before) if id(branch) in inside else before
                given = unused(f"{before}/given", self._taken)  # a branch's output is made in the branch
                branch.node.append(helper.make_node("Identity", [result], [given]))
                branch.output.append(helper.make_empty_tensor_value_info(given))
            node.output.append(unused(f"{before}/chosen", self._taken))
            return node.output[-1]
        raise AssertionError(before)


def _put(names: object, index: int, name: str) -> None:
    fields: list[str] = names  # type: ignore[assignment]
    while len(fields) <= index:
        fields.append("")
    fields[index] = name
