"""Models to measure with: recurrent graphs with random weights, of any size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Shape = tuple[int, ...]


def lstm(
    *, layers: int = 2, hidden: int = 256, features: int = 64, outputs: int = 16, seed: int = 7, node: str = "LSTM"
) -> onnx.ModelProto:
    """Stacked layers of `node`, LSTM or GRU, and a dense one: x (batch, time, features) -> y (batch, time, outputs)."""
    random, gates = np.random.default_rng(seed), {"LSTM": 4, "GRU": 3}[node]
    nodes, weights, size, last = [], [], features, "x_time"
    nodes.append(helper.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2]))

    def weight(name: str, *shape: int) -> str:
        values = random.normal(0, 1 / np.sqrt(shape[-1]), shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    for layer in range(layers):
        names = [weight(f"w{layer}", 1, gates * hidden, size), weight(f"r{layer}", 1, gates * hidden, hidden)]
        bias = weight(f"b{layer}", 1, 2 * gates * hidden)
        recurrent = helper.make_node(
            node, [last, *names, bias], [f"d{layer}"], hidden_size=hidden, name=f"{node.lower()}_{layer}"
        )
        nodes += [recurrent, helper.make_node("Squeeze", [f"d{layer}", "one"], [f"h{layer}"])]
        size, last = hidden, f"h{layer}"
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    nodes += [
        helper.make_node("MatMul", [last, weight("dense", hidden, outputs)], ["y_time"]),
        helper.make_node("Transpose", ["y_time"], ["y"], perm=[1, 0, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "lstm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time", features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "time", outputs])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def conv_lstm(*, filters: int = 8, side: int = 64, seed: int = 7) -> onnx.ModelProto:
    """A ConvLSTM2D cell and a 1x1 convolution, one timestep: x (batch, 1, side, side) -> y of the same shape.

    Its states h and c are (batch, filters, side, side): 256 KB together by default.
    """
    random = np.random.default_rng(seed)
    stored: dict[str, Array] = {
        "kernel": random.normal(0, 0.3, (4 * filters, 1, 3, 3)).astype(np.float32),
        "recurrent": random.normal(0, 0.1, (4 * filters, filters, 3, 3)).astype(np.float32),
        "head": random.normal(0, 0.3, (1, filters, 1, 1)).astype(np.float32),
        "quarters": np.full(4, filters, np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "kernel"], ["xw"], pads=[1] * 4),
        node("Conv", ["h", "recurrent"], ["hr"], pads=[1] * 4),
        node("Add", ["xw", "hr"], ["sum"]),
        node("Split", ["sum", "quarters"], ["i", "f", "g", "o"], axis=1),
        *(node("Sigmoid", [gate], [f"{gate}_on"]) for gate in "ifo"),
        node("Tanh", ["g"], ["g_on"]),
        node("Mul", ["f_on", "c"], ["kept"]),
        node("Mul", ["i_on", "g_on"], ["added"]),
        node("Add", ["kept", "added"], ["c_new"]),
        node("Tanh", ["c_new"], ["c_on"]),
        node("Mul", ["o_on", "c_on"], ["h_new"]),
        node("Conv", ["h_new", "head"], ["y"]),
    ]
    image, state = (1, side, side), (filters, side, side)
    return _timestep(nodes, stored, x=image, y=image, h=state, c=state)


def independent(*, hidden: int, features: int = 16, seed: int = 7) -> onnx.ModelProto:
    """An independently recurrent cell, h' = tanh(x W + u h), one timestep: a state of any size, and little to compute.

    x (batch, features) -> y (batch, features), the first units of h'.
    """
    random = np.random.default_rng(seed)
    stored: dict[str, Array] = {
        "w": random.normal(0, 1 / np.sqrt(features), (features, hidden)).astype(np.float32),
        "u": random.uniform(-0.9, 0.9, hidden).astype(np.float32),
        "first": np.zeros(1, np.int64),
        "last": np.array([features]),
        "axis": np.ones(1, np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Mul", ["h", "u"], ["hu"]),
        helper.make_node("Add", ["xw", "hu"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["h_new"]),
        helper.make_node("Slice", ["h_new", "first", "last", "axis"], ["y"]),
    ]
    return _timestep(nodes, stored, x=(features,), y=(features,), h=(hidden,))


def _timestep(
    nodes: list[onnx.NodeProto], stored: dict[str, Array], *, x: Shape, y: Shape, **states: Shape
) -> onnx.ModelProto:
    """A graph of one timestep whose states come in by their names and go out as NAME_new."""

    def value(name: str, shape: Shape) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

    graph = helper.make_graph(
        nodes,
        "timestep",
        [value("x", x), *(value(name, shape) for name, shape in states.items())],
        [value("y", y), *(value(f"{name}_new", shape) for name, shape in states.items())],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same of 16-bit numbers: weights, inputs, states and outputs."""
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graphs = [made.graph]
    for graph in graphs:
        graphs += [each.g for node in graph.node for each in node.attribute if each.type == onnx.AttributeProto.GRAPH]
        for tensor in [each for each in graph.initializer if each.data_type == single]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
        for value in [*graph.input, *graph.output, *graph.value_info]:
            if value.type.tensor_type.elem_type == single:
                value.type.tensor_type.elem_type = half
        for node in graph.node:
            if node.op_type == "ConstantOfShape":
                node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float16))))
    return made


def repository(folder: Path, **models: onnx.ModelProto) -> Path:
    """A model repository with these models as version 1."""
    for name, model in models.items():
        path = folder / name / "1"
        path.mkdir(parents=True)
        onnx.save(model, path / "model.onnx")
    return folder


def rnn_in_a_loop(*, hidden: int = 256, features: int = 64, seed: int = 7) -> onnx.ModelProto:
    """An RNN, h' = tanh(x W + h R), in a Loop that carries its weights, as tf2onnx writes Keras' SimpleRNN."""
    random = np.random.default_rng(seed)
    stored = {
        "w": random.normal(0, 1 / np.sqrt(features), (features, hidden)).astype(np.float32),
        "r": random.normal(0, 1 / np.sqrt(hidden), (hidden, hidden)).astype(np.float32),
        "one": np.array([1], np.int64),
        "width": np.array([hidden], np.int64),
        "yes": np.array(True),
    }
    f, b, i = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Gather", ["x_time", "t"], ["xt"], axis=0),
            helper.make_node("MatMul", ["xt", "w_in"], ["xw"]),
            helper.make_node("MatMul", ["h_in", "r_in"], ["hr"]),
            helper.make_node("Add", ["xw", "hr"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["h_out"]),
            *(helper.make_node("Identity", [a], [c]) for a, c in (("go", "on"), ("w_in", "w_out"), ("r_in", "r_out"))),
            helper.make_node("Identity", ["h_out"], ["yt"]),
        ],
        "timestep",
        [value("t", i, []), value("go", b, []), *(value(name, f, None) for name in ("h_in", "w_in", "r_in"))],
        [value("on", b, []), *(value(name, f, None) for name in ("h_out", "w_out", "r_out", "yt"))],
    )
    nodes = [
        helper.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2]),
        helper.make_node("Shape", ["x"], ["timesteps"], start=1, end=2),
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["rows", "width"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Loop", ["timesteps", "yes", "zeros", "w", "r"], ["h", "w_", "r_", "y_time"], body=body),
        helper.make_node("Transpose", ["y_time"], ["y"], perm=[1, 0, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "rnn",
        [value("x", f, ["batch", "time", features])],
        [value("y", f, ["batch", "time", hidden])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


class Example(NamedTuple):
    """A model to measure: what it is called in tables, a timestep's input without a batch axis, and how it is built."""

    title: str
    shape: Shape
    build: Callable[[], onnx.ModelProto]


STATE_KB = (1, 4, 16, 64, 256, 1024)
EXAMPLES = {
    "lstm": Example("LSTM 2x256", (64,), lstm),
    "tiny": Example("LSTM 1x32", (64,), lambda: lstm(layers=1, hidden=32)),
    "gru": Example("GRU 2x256", (64,), lambda: lstm(node="GRU")),
    "wide": Example("LSTM 2x352", (64,), lambda: lstm(hidden=352)),
    "conv": Example("ConvLSTM2D 64x64x8", (1, 64, 64), conv_lstm),
    **{
        f"state{kb}": Example(f"state of {kb} KB", (16,), partial(independent, hidden=kb * 256))  # float32
        for kb in STATE_KB
    },
}
