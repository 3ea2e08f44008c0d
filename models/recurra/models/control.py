"""Inputs that tell a graph where in its sequence a call is: Triton feeds them, and graphs made for it have them.

START is known without a caller's help: it is a state, whose fresh value says yes, and no ever after.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import GraphProto, ValueInfoProto, helper, numpy_helper

from recurra.models.config import ModelConfig, TensorConfig
from recurra.models.graph import dims_of, dtype_of
from recurra.models.pairs import Pair

START: Final = "start"


def starts(graph: GraphProto, config: ModelConfig) -> list[Pair]:
    """Makes a state of every input that model.toml calls a start control; changes the graph."""
    values = {value.name: value for value in graph.input}
    return [
        _start(graph, values[name], given)
        for name, given in config.inputs.items()
        if given.control == START and name in values
    ]


def _start(graph: GraphProto, value: ValueInfoProto, given: TensorConfig) -> Pair:
    name, dtype, (no, yes) = value.name, dtype_of(value), given.values
    after = f"{name}/next"
    less, plus = ("Xor", "Xor") if dtype.kind == "b" else ("Sub", "Add")
    graph.initializer.append(numpy_helper.from_array(np.array(no, dtype), f"{name}/no"))
    graph.node.append(helper.make_node(less, [name, name], [f"{name}/zero"]))
    graph.node.append(helper.make_node(plus, [f"{name}/zero", f"{name}/no"], [after]))
    graph.output.append(helper.make_tensor_value_info(after, value.type.tensor_type.elem_type, dims_of(value)))
    return Pair(name, name, name, after, given.batch_axis or 0, float(yes), "control")
