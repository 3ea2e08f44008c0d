"""A graph made servable: its states found or lifted, its constants filled in, its integer inputs bounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, ValueInfoProto

from recurra.models import branches, causal, control, scanned, unlooped
from recurra.models import pairs as state_pairs
from recurra.models.config import ModelConfig
from recurra.models.dead import bury
from recurra.models.flow import Flow
from recurra.models.graph import attribute, constants, data_inputs, dims_of, dtype_of, walk
from recurra.models.hoist import hoist
from recurra.models.layout import Constant
from recurra.models.lift import lift
from recurra.models.names import name_nodes
from recurra.models.pairs import Pair
from recurra.models.refusal import ModelRefused
from recurra.models.time_first import time_first
from recurra.models.unrolled import unrolled

_SEQUENCE_LENS = 4  # position among a native node's inputs


@dataclass(frozen=True)
class Prepared:
    """A graph whose every input is data, a state or a constant.

    Attributes:
        folder: where the files that model.toml names lie.
        bounds: smallest and largest value by input.
        doubts: what may be a state but was left as it is: it may explain why the self-test refuses the model.

    """

    graph: GraphProto
    content: bytes
    config: ModelConfig
    folder: Path
    pairs: tuple[Pair, ...]
    constants: tuple[Constant, ...]
    bounds: Mapping[str, tuple[int, int]]
    doubts: tuple[str, ...] = ()

    @property
    def inputs(self) -> list[ValueInfoProto]:
        """The graph inputs that callers feed."""
        others = {pair.input for pair in self.pairs} | {constant.name for constant in self.constants}
        return [value for value in data_inputs(self.graph) if value.name not in others]

    @property
    def outputs(self) -> list[ValueInfoProto]:
        """The graph outputs that callers get."""
        states = {pair.output for pair in self.pairs}
        return [value for value in self.graph.output if value.name not in states]


def prepare(model: ModelProto, config: ModelConfig, folder: Path, *, gpu: bool = False) -> Prepared:
    """Finds or lifts the states of `model`, which is changed in place.

    For a `gpu` the content that is run is another form of the graph where the CUDA provider lacks a kernel.

    Raises ModelRefused if it has none, if only a guess tells them, or if model.toml names what the graph lacks.
    """
    graph = model.graph
    _check_names(graph, config)
    fixed = _constants(graph, config)
    names = [constant.name for constant in fixed]
    known = [*state_pairs.explicit(graph, config.states), *control.starts(graph, config)]
    if any(pair.input in names for pair in known):
        raise ModelRefused("model.toml: an input cannot be both a constant and a state")
    pairs = state_pairs.find(graph, known, names)
    branches.settle(model)
    time_first(graph)
    hoist(graph)
    paddings = causal.find(model)
    lifted, doubts = lift(model, pairs)
    pairs += [*lifted, *causal.expose(graph, paddings)]
    if not pairs:
        _refuse_stateless(graph, names, doubts)
    _check_unique(pairs)
    bury(graph)
    prepared = Prepared(
        graph,
        _content(model, pairs, gpu=gpu),
        config,
        folder,
        tuple(pairs),
        tuple(fixed),
        bounds(graph),
        tuple(doubts),
    )
    if not prepared.inputs:
        raise ModelRefused("every input of the graph is a state or a constant: none is left for data")
    if not prepared.outputs:
        raise ModelRefused("every output of the graph is a state: none is left to reply with; add one (an Identity)")
    return prepared


def _content(model: ModelProto, pairs: list[Pair], *, gpu: bool) -> bytes:
    served = model
    if gpu and any(scanned.needs(node) or node.op_type == "Loop" for node in walk(model.graph)):
        served = ModelProto()
        served.CopyFrom(model)
        scanned.rewrite(served)
        unlooped.rewrite(served, {pair.input: pair.output for pair in pairs})
        bury(served.graph)
    name_nodes(served.graph)
    return served.SerializeToString()


def _check_names(graph: GraphProto, config: ModelConfig) -> None:
    known = {
        "inputs": {value.name for value in data_inputs(graph)},
        "outputs": {value.name for value in graph.output},
    }
    for kind, tables in (("inputs", config.inputs), ("outputs", config.outputs)):
        for name in tables:
            if name not in known[kind]:
                raise ModelRefused(
                    f"model.toml: [{kind}.{name}]: the graph has no such one; it has {', '.join(sorted(known[kind]))}"
                )


def _check_unique(pairs: list[Pair]) -> None:
    names = [pair.name for pair in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ModelRefused(f"two states are called '{name}'; name them in model.toml with [[states]]")


def _constants(graph: GraphProto, config: ModelConfig) -> list[Constant]:
    """Inputs with a value in model.toml, and lengths that native nodes read, which are those of the chunk."""
    found = []
    flow = Flow(graph)
    lengths = {
        origin
        for site in flow.sites
        if len(site.inputs) > _SEQUENCE_LENS
        for origin in flow.origins(site.inputs[_SEQUENCE_LENS])
    }
    for value in data_inputs(graph):
        given = config.inputs.get(value.name)
        if given is not None and given.constant is not None:
            found.append(_constant(value, given.constant, given.batch_axis))
        elif (0, value.name) in lengths and len(dims_of(value)) == 1:
            found.append(Constant(value.name, np.zeros((), dtype_of(value)), batch_axis=0, counts=True))
    return found


def _constant(value: ValueInfoProto, given: object, batch_axis: int | None) -> Constant:
    dims, dtype = list(dims_of(value)), dtype_of(value)
    where = f"model.toml: [inputs.{value.name}] constant = {given!r}"
    free = [axis for axis, size in enumerate(dims) if not isinstance(size, int)]
    axis = batch_axis if batch_axis is not None else (free[0] if free else None)
    if axis is not None:
        if axis >= len(dims):
            raise ModelRefused(f"model.toml: [inputs.{value.name}] batch_axis = {axis}: it has {len(dims)} axes")
        del dims[axis]
    try:
        raw = np.asarray(given)
        with np.errstate(invalid="ignore"):  # a value that is too large is told below
            array = raw.astype(dtype)
        shape = [size if isinstance(size, int) else 1 for size in dims]
        array = np.ascontiguousarray(np.broadcast_to(array, shape)).reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelRefused(f"{where} does not fit {dtype} of shape {dims}: {error}") from error
    if dtype.kind in "iub" and not (array == raw).all():
        raise ModelRefused(f"{where} is no {dtype}")
    return Constant(value.name, array, axis)


def bounds(graph: GraphProto) -> dict[str, tuple[int, int]]:
    """The rows of the tables that inputs index."""
    flow, tables = Flow(graph), constants(graph)
    inputs = {value.name for value in data_inputs(graph)}
    rows: dict[str, int] = {}
    for site in flow.gathers:
        sizes = [tables[name].dims[0] for _, name in flow.origins(site.inputs[0]) if name in tables]
        if attribute(site.node, "axis", 0) == 0 and sizes:
            for scope, name in flow.origins(site.inputs[1]):
                if scope == 0 and name in inputs:
                    rows[name] = min(rows.get(name, sizes[0]), *sizes)
    return {name: (0, count - 1) for name, count in rows.items()}


def _refuse_stateless(graph: GraphProto, constant_names: list[str], doubts: list[str]) -> None:
    guesses = state_pairs.weak(graph, constant_names)
    if guesses:
        raise ModelRefused(
            "no state found for sure; only equal shapes suggest one. If this is the state, put these lines into "
            f"model.toml (else give the right names):\n\n{state_pairs.stanza(guesses)}"
        )
    reasons = [*doubts, *filter(None, [unrolled(graph)])]
    hint = f" ({'; '.join(reasons)})" if reasons else ""
    raise ModelRefused(
        f"no state found{hint}: no native RNN, GRU or LSTM node, no Loop or Scan that carries one, and no input and "
        "output that do. If the graph has one, list the pairs in model.toml:\n\n"
        '[[states]]\nname = "h"\ninput = "NAME OF THE INPUT"\noutput = "NAME OF THE OUTPUT"\n'
    )
