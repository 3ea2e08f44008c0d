"""Models to measure with: recurrent graphs with random weights, of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def lstm(
    *, layers: int = 2, hidden: int = 256, features: int = 64, outputs: int = 16, seed: int = 7
) -> onnx.ModelProto:
    """Stacked LSTM layers and a dense one: x (batch, time, features) -> y (batch, time, outputs)."""
    random = np.random.default_rng(seed)
    nodes, weights, size, last = [], [], features, "x_time"
    nodes.append(helper.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2]))

    def weight(name: str, *shape: int) -> str:
        values = random.normal(0, 1 / np.sqrt(shape[-1]), shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    for layer in range(layers):
        names = [weight(f"w{layer}", 1, 4 * hidden, size), weight(f"r{layer}", 1, 4 * hidden, hidden)]
        bias = weight(f"b{layer}", 1, 8 * hidden)
        lstm_node = helper.make_node(
            "LSTM", [last, *names, bias], [f"d{layer}"], hidden_size=hidden, name=f"lstm_{layer}"
        )
        nodes += [lstm_node, helper.make_node("Squeeze", [f"d{layer}", "one"], [f"h{layer}"])]
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
