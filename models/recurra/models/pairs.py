"""State pairs: which graph input takes the state that which graph output gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from onnx import GraphProto, ValueInfoProto

from recurra.models import layers, stems
from recurra.models.config import StateConfig
from recurra.models.flow import KINDS, Flow
from recurra.models.graph import Dims, data_inputs, dims_of, is_recurrent, walk
from recurra.models.refusal import ModelRefused
from recurra.models.signature import Array


@dataclass(frozen=True)
class Pair:
    """One state of a graph.

    Attributes:
        input: the graph input that takes it.
        output: the graph output that gives its next value.
        batch_axis: in the graph; None: to be found.
        fresh: one session's fresh state, a number that fills it, or the name of a .npy file.
        origin: how it was found, for people.

    """

    name: str
    layer: str
    input: str
    output: str
    batch_axis: int | None = None
    fresh: float | str | Array = field(default=0.0, compare=False)
    origin: str = "structure"


def explicit(graph: GraphProto, states: Iterable[StateConfig]) -> list[Pair]:
    """The pairs of model.toml. Raises ModelRefused for a tensor that the graph lacks, or that two states use."""
    inputs = {value.name for value in data_inputs(graph)}
    outputs = {value.name for value in graph.output}
    pairs = []
    for state in states:
        for kind, name, known in (("input", state.input, inputs), ("output", state.output, outputs)):
            if name not in known:
                raise ModelRefused(
                    f"model.toml: state '{state.name}': the graph has no free {kind} '{name}'; "
                    f"it has {', '.join(sorted(known)) or 'none'}"
                )
            known.remove(name)
        layer = state.layer or state.name.split("/")[0]
        pairs.append(Pair(state.name, layer, state.input, state.output, state.batch_axis, state.fresh, "model.toml"))
    return pairs


def find(graph: GraphProto, known: Iterable[Pair] = (), constants: Iterable[str] = ()) -> list[Pair]:
    """The pairs that the graph's structure shows, then those that names tell, beside the `known` ones.

    Inputs fed with `constants` are no states. At least one input is left for data.
    """
    known = list(known)
    inputs = [value for value in data_inputs(graph) if value.name not in constants]
    pairs = known + _by_structure(graph, inputs, known)
    taken = {pair.input for pair in pairs} | {pair.output for pair in pairs}
    free_inputs = [value for value in inputs if value.name not in taken]
    free_outputs = [value for value in graph.output if value.name not in taken]
    names = [value.name for value in free_inputs], [value.name for value in free_outputs]
    for before, after in stems.matches(*names, strict=any(map(is_recurrent, walk(graph)))):
        if len(pairs) - len(known) < len(inputs) - 1 and _alike(graph, before, after):
            layer = stems.layer(before)
            pairs.append(Pair(before, layer, before, after, origin="names"))
    order = [value.name for value in inputs]
    return known + sorted(pairs[len(known) :], key=lambda pair: order.index(pair.input))


def weak(graph: GraphProto, constants: Iterable[str] = ()) -> list[Pair]:
    """Pairs that only equal shape and type suggest, each the only one of its shape: a guess to show, never to serve."""
    inputs = [value for value in data_inputs(graph) if value.name not in constants]
    guesses = [
        (before, [after for after in graph.output if _same(before, after)])
        for before in inputs
        if sum(_same(before, other) for other in inputs) == 1
    ]
    pairs = [
        Pair(before.name, before.name, before.name, found[0].name, origin="shape")
        for before, found in guesses
        if len(found) == 1
    ]
    return pairs if len(pairs) < len(inputs) else []


def stanza(pairs: Iterable[Pair]) -> str:
    """The model.toml text that states `pairs`."""
    return "\n".join(
        f'[[states]]\nname = "{pair.name}"\ninput = "{pair.input}"\noutput = "{pair.output}"\n' for pair in pairs
    )


def _by_structure(graph: GraphProto, inputs: list[ValueInfoProto], known: list[Pair]) -> list[Pair]:
    """Inputs that reach the initial state of native nodes whose final state reaches an output.

    An input may hold the states of several nodes, stacked: the output must hold the final states of just these.
    """
    flow = Flow(graph)
    taken = {pair.input for pair in known} | {pair.output for pair in known}
    finals, takes = {}, defaultdict[str, set[tuple[int, str]]](set)
    for site in flow.sites:
        for kind, (source, result) in KINDS.items():
            if source < len(site.inputs):
                for scope, name in flow.origins(site.inputs[source]):
                    if scope == 0:
                        takes[name].add((site.number, kind))
            if result < len(site.outputs) and site.outputs[result] is not None:
                finals[site.outputs[result]] = (site.number, kind)
    gives = {
        value.name: {finals.get(origin) for origin in flow.origins(flow.names.get(value.name))}
        for value in graph.output
    }
    owner = layers.names([site.node for site in flow.sites])
    pairs = []
    for value in inputs:
        found = [name for name, sites in gives.items() if sites == takes.get(value.name) and name not in taken]
        found = [name for name in found if _alike(graph, value.name, name)]
        # A graph may give the last layer's final state once more, as data.
        match = stems.nearest(value.name, found)
        if value.name in taken or not match:
            continue
        owners = {owner[number] for number, _ in takes[value.name]}
        layer = owners.pop() if len(owners) == 1 else stems.layer(value.name)
        pairs.append(Pair(value.name, layer, value.name, match))
        taken |= {value.name, match}
    return pairs


def _alike(graph: GraphProto, before: str, after: str) -> bool:
    """Whether an input and an output may be one state by type and declared sizes, free ones left open."""
    source = next(value for value in graph.input if value.name == before)
    result = next(value for value in graph.output if value.name == after)
    if source.type.tensor_type.elem_type != result.type.tensor_type.elem_type:
        return False
    if not result.type.tensor_type.HasField("shape"):
        return True
    ours, theirs = dims_of(source), dims_of(result)
    return len(ours) == len(theirs) and all(map(_compatible, ours, theirs))


def _compatible(ours: int | str | None, theirs: int | str | None) -> bool:
    return not isinstance(ours, int) or not isinstance(theirs, int) or ours == theirs


def _same(before: ValueInfoProto, after: ValueInfoProto) -> bool:
    """Equal type and equal declared sizes."""
    if not after.type.tensor_type.HasField("shape"):
        return False
    if before.type.tensor_type.elem_type != after.type.tensor_type.elem_type:
        return False
    ours, theirs = _fixed(dims_of(before)), _fixed(dims_of(after))
    return bool(ours) and ours == theirs


def _fixed(dims: Dims) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in dims)
