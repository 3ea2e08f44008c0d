"""A graph of one timestep made into one over time: for cells that have no native node, such as ConvLSTM2D."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import onnx
from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from recurra.models.graph import STANDARD, data_inputs
from recurra.models.names import all_names, rename, unused
from recurra.models.refusal import ModelRefused

TIME: Final = "time"
_OLDEST: Final = 9  # the opset since which Scan is what it is


def over_time(step: ModelProto, states: Mapping[str, str], *, held: Collection[str] = ()) -> ModelProto:
    """A model that runs `step` for each timestep of its inputs, in one Scan.

    Inputs (N, ...) become (N, T, ...), and so do outputs; states keep their names and shapes.

    Args:
        step: takes states and one timestep of each input, the batch first.
        states: the output that gives a state's next value, by the input that takes it.
        held: inputs that stay as they are, the same at every timestep of a chunk.

    Raises:
        ModelRefused: `step` lacks a name, an output's shape, or a Scan.

    """
    graph = onnx.shape_inference.infer_shapes(step).graph
    inputs = {value.name: value for value in data_inputs(graph)}
    outputs = {value.name: value for value in graph.output}
    _check(step, inputs, outputs, states, held)
    timed = [value for name, value in inputs.items() if name not in states and name not in held]
    made = [value for name, value in outputs.items() if name not in states.values()]
    timesteps = unused(TIME, _sizes(graph))
    body = _body(graph, states, timed, made)
    scan = helper.make_node(
        "Scan",
        [*states, *(value.name for value in timed)],
        [*states.values(), *(value.name for value in made)],
        name="time",
        body=body,
        num_scan_inputs=len(timed),
        scan_input_axes=[1] * len(timed),
        scan_output_axes=[1] * len(made),
    )
    along = {value.name for value in (*timed, *made)}
    whole = helper.make_graph(
        [scan],
        graph.name or "over_time",
        [_with_time(value, timesteps) if name in along else value for name, value in inputs.items()],
        [_with_time(value, timesteps) if name in along else value for name, value in outputs.items()],
        list(graph.initializer),
    )
    whole.sparse_initializer.extend(graph.sparse_initializer)
    return helper.make_model(whole, opset_imports=list(step.opset_import), ir_version=step.ir_version)


def _check(
    step: ModelProto,
    inputs: Mapping[str, ValueInfoProto],
    outputs: Mapping[str, ValueInfoProto],
    states: Mapping[str, str],
    held: Collection[str],
) -> None:
    for name in (*states, *held):
        if name not in inputs:
            raise ModelRefused(f"the step has no input '{name}'; it has {', '.join(inputs)}")
    for name in states.values():
        if name not in outputs:
            raise ModelRefused(f"the step has no output '{name}'; it has {', '.join(outputs)}")
    if len(set(states.values())) < len(states):
        raise ModelRefused("two states of the step have one output; give each its own")
    if len(states) + len(held) >= len(inputs):
        raise ModelRefused("every input of the step is a state or held: none is left that has timesteps")
    if any(entry.domain in STANDARD and entry.version < _OLDEST for entry in step.opset_import):
        raise ModelRefused(f"the step has an opset below {_OLDEST}; export it with a newer one")
    for value in (*inputs.values(), *outputs.values()):
        if not value.type.tensor_type.HasField("shape"):
            raise ModelRefused(f"'{value.name}' of the step has no shape; export it with one")


def _body(
    graph: GraphProto, states: Mapping[str, str], timed: list[ValueInfoProto], made: list[ValueInfoProto]
) -> GraphProto:
    """The Scan's body, all of whose names are its own; it reads weights and held inputs from outside."""
    taken = all_names(graph)
    inside = GraphProto()
    inside.node.extend(graph.node)
    own = [*states, *(value.name for value in timed), *(name for node in graph.node for name in node.output if name)]
    new = {name: unused(f"step/{name}", taken) for name in own}
    rename(inside, new)
    values = {value.name: value for value in (*graph.input, *graph.output)}
    taking = [_called(values[name], new[name]) for name in states]
    taking += [_called(value, new[value.name]) for value in timed]
    giving = []
    for name, like in [*((after, values[before]) for before, after in states.items()), *((v.name, v) for v in made)]:
        result = unused(f"step/{name}/out", taken)  # an output may be an input, a weight, or given out twice
        inside.node.append(helper.make_node("Identity", [new.get(name, name)], [result]))
        giving.append(_called(like, result))
    return helper.make_graph(list(inside.node), "step", taking, giving)


def _called(value: ValueInfoProto, name: str) -> ValueInfoProto:
    found = ValueInfoProto()
    found.CopyFrom(value)
    found.name = name
    return found


def _with_time(value: ValueInfoProto, timesteps: str) -> ValueInfoProto:
    """(N, ...) as (N, T, ...)."""
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in _dims(value)]
    dims.insert(1, timesteps)
    return helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, dims)


def _dims(value: ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)


def _sizes(graph: GraphProto) -> set[str]:
    return {dim.dim_param for value in (*graph.input, *graph.output) for dim in _dims(value)}
