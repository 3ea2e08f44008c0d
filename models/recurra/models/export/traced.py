"""A Keras model traced to an ONNX graph, with its states as inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from onnx import GraphProto, ModelProto

from recurra.models.carried import is_loop
from recurra.models.export.backend import Layer, Tensor, keras, tf
from recurra.models.export.converted import converted, refuse_unknown
from recurra.models.export.likeness import check
from recurra.models.export.recurrent import Stateless
from recurra.models.export.states import State
from recurra.models.names import all_names, rename, unused
from recurra.models.refusal import ModelRefused
from recurra.models.seats import Loops
from recurra.models.signature import Array

_TIMESTEPS: Final = 17  # where any number will do; no usual size of another axis
_ROWS: Final = 2


@dataclass(frozen=True)
class Wired:
    """A state, and the graph's input and output that are it."""

    state: State
    input: str
    output: str


@dataclass(frozen=True)
class _Port:
    """An input, None for sizes that are free."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def trace(
    model: Layer, outputs: Sequence[str], given: Sequence[Wired] = (), *, free_time: bool
) -> tuple[ModelProto, list[Wired]]:
    """The graph of a Keras model whose inputs are known, the batch free in it, and all its states.

    Args:
        outputs: a name for each of the model's outputs.
        given: states that are inputs and outputs of the model already.
        free_time: frees the time axis where the model has it fixed, too.

    """
    ports = [_Port(input_name(each), (None, *each.shape[1:]), _dtype(model, each)) for each in model.inputs]
    stateless = Stateless(model)
    shapes = [[_TIMESTEPS if size is None else size for size in port.shape[1:]] for port in ports]
    samples = [tf.zeros([1, *shape], port.dtype) for port, shape in zip(ports, shapes, strict=True)]
    stateless.rehearse(_packed(model, samples))
    for layer in stateless.started - {each.state.layer for each in given}:
        raise ModelRefused(
            f"'{layer}' starts from states that its caller gives, at every call anew; let it start by itself, or make "
            "these states inputs of the model, and the layer's next ones (return_state=True) outputs; what computes "
            "them is then a model of its own: --start ENCODER"
        )
    if free_time:
        ports = [_freed(port) if _has_time(port, stateless.timesteps) else port for port in ports]
    proto = _converted(model, stateless, ports)
    kept = [Wired(state, state.name, f"{state.name}/next") for state in stateless.states]
    inputs = {f"input_{index}": port.name for index, port in enumerate(ports)}
    inputs |= {f"state_{index}": each.input for index, each in enumerate(kept)}
    results = (*outputs, *(each.output for each in kept))
    _rename(proto.graph, inputs, {f"result_{index}": name for index, name in enumerate(results)})
    wired = [*given, *kept]
    _hold(proto, wired)
    shapes += [list(each.state.fresh.shape) for each in kept]
    check(proto, [[_ROWS, *shape] for shape in shapes], partial(_in_keras, model, stateless))
    return proto, wired


def input_name(tensor: Tensor) -> str:
    """The name of the layer that an input of a model is."""
    return str(tensor._keras_history.operation.name)  # noqa: SLF001


def _dtype(model: Layer, tensor: Tensor) -> str:
    """Of an input: what an Embedding reads are indices, though Keras' Input makes them float32 if nobody says so."""
    for layer in model.layers:
        nodes = layer._inbound_nodes if isinstance(layer, keras.layers.Embedding) else []  # noqa: SLF001
        if any(tensor is each for node in nodes for each in node.input_tensors):
            return "int32"
    return str(keras.backend.standardize_dtype(tensor.dtype))


def _has_time(port: _Port, timesteps: Collection[int]) -> bool:
    """Whether the first axis after the batch is time: what layers took as such, and no axis of features."""
    is_sequence = len(port.shape) > 2 or "int" in port.dtype  # noqa: PLR2004
    return len(port.shape) > 1 and is_sequence and port.shape[1] in timesteps


def _freed(port: _Port) -> _Port:
    return replace(port, shape=(None, None, *port.shape[2:]))


def _packed(model: Layer, tensors: Sequence[Tensor]) -> Tensor:
    """The model's own nest of its inputs."""
    if isinstance(model, keras.Sequential):
        return tensors[0]
    return keras.tree.pack_sequence_as(model.input, list(tensors))


def _in_keras(model: Layer, stateless: Stateless, arrays: Sequence[Array]) -> list[Array]:
    """What the model gives for inputs and states, by Keras' own loops."""
    tensors, count = [tf.constant(array) for array in arrays], len(model.inputs)
    outputs, states = stateless(_packed(model, tensors[:count]), tensors[count:])
    return [value.numpy() for value in (*outputs, *states)]


def _converted(model: Layer, stateless: Stateless, ports: Sequence[_Port]) -> ModelProto:
    specs = [tf.TensorSpec(port.shape, port.dtype, f"input_{index}") for index, port in enumerate(ports)]
    for index, state in enumerate(stateless.states):
        specs.append(tf.TensorSpec((None, *state.fresh.shape), state.fresh.dtype, f"state_{index}"))

    def call(*tensors: Tensor) -> dict[str, Tensor]:
        outputs, states = stateless(_packed(model, tensors[: len(ports)]), tensors[len(ports) :])
        return {f"result_{index}": tf.identity(value) for index, value in enumerate((*outputs, *states))}

    proto = converted(call, specs)
    stateless.natives.write(proto.graph)
    refuse_unknown(proto.graph)
    return proto


def _rename(graph: GraphProto, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Gives inputs and outputs their names and their order, and the free sizes theirs."""
    names = {**inputs, **outputs}
    clashes = all_names(graph) & set(names.values())
    rename(graph, {name: f"{name}/inside" for name in clashes})
    rename(graph, names)
    for values, order in ((graph.input, list(inputs.values())), (graph.output, list(outputs.values()))):
        values.sort(key=lambda value: order.index(value.name))
        for value in values:
            for name, dim in zip(("batch", "time"), value.type.tensor_type.shape.dim, strict=False):
                if not dim.HasField("dim_value"):
                    dim.dim_param = name


def _hold(proto: ModelProto, wired: Sequence[Wired]) -> None:
    """Loops of masked layers start the output that they hold while masked from the state that it is, if it is one.

    Otherwise it is found when the model is loaded, as a state of the layer that the Loop is named after.
    """
    states = {each.input: each.state for each in wired}
    kept = Loops(proto, set(states)).find()
    for node in filter(is_loop, proto.graph.node):
        own = [name for name in node.input if name in states]
        shown = [name for name in own if states[name].shown]
        held = [each for each in kept if each.seat.node is node]
        if len(held) == len(shown) == 1 and _shape(held[0].fresh) == states[shown[0]].fresh.shape:
            node.input[held[0].seat.source] = shown[0]
        elif held and own:
            node.name = unused(states[own[0]].layer, {each.name for each in proto.graph.node})


def _shape(fresh: Array | None) -> tuple[int, ...] | None:
    return None if fresh is None else fresh.shape
