"""The lift: recurrent nodes whose state lives and dies inside one run get it as graph input and output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from recurra.models import layers
from recurra.models.expose import Exposer
from recurra.models.flow import KINDS, Flow
from recurra.models.graph import ancestors, attribute, constants, is_recurrent, label, walk
from recurra.models.pairs import Pair
from recurra.models.refusal import ModelRefused
from recurra.models.seats import Kept, Loops, Place, Seat, evaluate, native_seats, natives, places, reached

_RECURRENT_WEIGHTS: Final = 2  # position among a native node's inputs


def lift(model: ModelProto, known: Iterable[Pair] = ()) -> tuple[list[Pair], list[str]]:
    """Exposes the states that the file keeps to itself; changes `model` in place.

    Nodes whose initial state comes from a `known` state stay as they are.

    Returns:
        the new pairs, and doubts for people: what may be a state, but was left as it is.

    Raises:
        ModelRefused: naming node, reason and remedy, for what cannot be lifted.

    """
    graph = model.graph
    exposed = {pair.input for pair in known}
    _refuse_restarted(graph)
    # All initial values first: an evaluation must see the graph as it came.
    loops = Loops(model, exposed)
    found = [*_native(model, exposed), *loops.find()]
    owners = _owners(graph, found)
    exposer = Exposer(graph)
    pairs = []
    for place, layer in zip(owners, layers.names([place.node for place in owners]), strict=True):
        for states in _merged([kept for kept in found if kept.seat.node is place.node], found):
            seat, fresh = states[0].seat, states[0].fresh
            if fresh is None:
                fresh = np.zeros(_shape(seat.place), _dtype(seat.place))
            pairs.append(exposer.expose([each.seat for each in states], layer, fresh, states[0].batch_axis))
    return pairs, loops.doubts


def _native(model: ModelProto, exposed: set[str]) -> list[Kept]:
    """The states of native nodes. Raises ModelRefused for one that is computed from the data.

    A layer that starts from a known state in one branch of an If and from zeros in another, where that state is empty,
    has none of its own there.
    """
    seats, begun = [], list[Place]()
    for seat in (seat for place in natives(model.graph) for seat in native_seats(place)):
        inputs = reached(model, seat)
        if inputs and not inputs & exposed:
            raise ModelRefused(_from_data(seat, sorted(inputs)))
        if inputs:
            begun.append(seat.place)
        else:
            seats.append(seat)
    if begun and any(len(seat.place.graphs) > 1 for seat in seats):
        served = set(map(_weights, begun))
        seats = [seat for seat in seats if len(seat.place.graphs) == 1 or _weights(seat.place) not in served]
    initials = evaluate(model, seats)
    found = []
    for seat in seats:
        fresh = None
        if seat in initials:
            where = label(seat.node)
            shape = initials[seat].values[0].shape
            if len(shape) != 3:  # noqa: PLR2004
                raise ModelRefused(f"{where} starts from a state of shape {list(shape)}; it must be (directions, N, H)")
            fresh = initials[seat].fresh(1, where)
        found.append(Kept(seat, fresh, 1))
    return found


def _owners(graph: GraphProto, found: Sequence[Kept]) -> list[Place]:
    """The nodes that give layers their names: all native ones, and Loops that keep a state."""
    keeping = {id(kept.seat.node) for kept in found}
    return [place for place in places(graph) if is_recurrent(place.node) or id(place.node) in keeping]


def _merged(states: Sequence[Kept], found: Sequence[Kept]) -> list[list[Kept]]:
    """Each state with its twins: one layer may be written in both branches of an If, with the same weights.

    A state whose twin came first is left out.
    """
    groups = []
    for kept in states:
        place = kept.seat.place
        if len(place.graphs) == 1 or not is_recurrent(place.node):
            groups.append([kept])
            continue
        twins = [each for each in found if _is_twin(each, kept)]
        if twins[0] is kept:
            distinct = {id(each.seat.place.graphs[-1]): each for each in reversed(twins)}
            groups.append(list(reversed(distinct.values())))
    return groups


def _is_twin(one: Kept, other: Kept) -> bool:
    if one is other:
        return True
    ours, theirs = one.seat.place, other.seat.place
    if ours.graphs[-1] is theirs.graphs[-1] or len(ours.graphs) == 1 or not is_recurrent(ours.node):
        return False
    return one.seat.kind == other.seat.kind and _weights(ours) == _weights(theirs)


def _weights(place: Place) -> str:
    """What tells whether two nodes are one layer: their recurrent weights, or what these are cut from."""
    _, names = ancestors(place.graphs, [place.node.input[_RECURRENT_WEIGHTS]], through_shapes=False)
    stored = {name: tensor for graph in place.graphs for name, tensor in constants(graph).items() if name in names}
    parts = [tensor.raw_data or tensor.SerializeToString() for tensor in stored.values()]
    return sha256(max(parts, key=len)).hexdigest() if parts else place.node.input[_RECURRENT_WEIGHTS]


def _refuse_restarted(graph: GraphProto) -> None:
    """A native node in the body of a Loop or Scan is served only where its state comes in from outside."""
    flow = Flow(graph)
    liftable = {id(place.node) for place in natives(graph)}
    fixed = {tensor.name for tensor in graph.initializer}
    fixed.update(node.output[0] for node in walk(graph) if node.op_type in ("Constant", "ConstantOfShape"))
    for site in flow.sites:
        starts = site.inputs[KINDS["h"][0] :][:1]
        if id(site.node) not in liftable and {name for start in starts for _, name in flow.origins(start)} <= fixed:
            raise ModelRefused(
                f"{label(site.node)} lies in the body of a Loop or Scan and starts from the same state at every "
                "iteration: no state of a session fits it; export it without control flow, or carry its state through "
                "the loop"
            )


def _from_data(seat: Seat, inputs: list[str]) -> str:
    where = label(seat.node)
    if inputs[0] == seat.start:
        return (
            f"{where} starts from the input '{inputs[0]}', but its final state is no output of the graph; "
            "export the final state as an output too, or leave the initial state out to have it lifted"
        )
    return (
        f"{where} starts from a state that is computed from the data ({', '.join(inputs)}): it would start "
        "anew at every call; export the part that computes it as start.onnx, and the rest as model.onnx beside it"
    )


def _shape(place: Place) -> tuple[int, int]:
    """Directions and units."""
    node = place.node
    directions = 2 if attribute(node, "direction", "forward") == "bidirectional" else 1
    units = attribute(node, "hidden_size")
    if units is None:
        weights = _constant(place, node)
        if weights is None:
            raise ModelRefused(f"{label(node)} tells no hidden_size; export it with this attribute")
        units = weights.dims[-1]
    return directions, units


def _dtype(place: Place) -> np.dtype[np.floating]:
    """The type of the weights, which is the state's; float32 where they are computed."""
    weights = _constant(place, place.node)
    return np.dtype(helper.tensor_dtype_to_np_dtype(weights.data_type if weights else TensorProto.FLOAT))


def _constant(place: Place, node: NodeProto) -> TensorProto | None:
    """The recurrent weights."""
    for graph in reversed(place.graphs):
        found = constants(graph).get(node.input[_RECURRENT_WEIGHTS])
        if found is not None:
            return found
    return None
