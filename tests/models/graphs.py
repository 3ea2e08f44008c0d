"""Small recurrent graphs, built by hand, and what they must give, in numpy.

A graph's gates are ordered as ONNX orders them: LSTM i o f c, GRU z r h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from recurra.models.session import Session

Array = NDArray[Any]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
INT32, BOOL = TensorProto.INT32, TensorProto.BOOL

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@dataclass
class Weights:
    """W (D, G*H, F), R (D, G*H, H), B (D, 2*G*H) of one native node."""

    op: str
    w: Array
    r: Array
    b: Array

    @classmethod
    def draw(cls, op: str, features: int, hidden: int, directions: int = 1, seed: int = 0) -> Weights:
        rng, gates = np.random.default_rng(seed), GATES[op]
        shapes = ((gates * hidden, features), (gates * hidden, hidden), (2 * gates * hidden,))
        return cls(op, *(rng.normal(0, 0.4, (directions, *shape)).astype(np.float32) for shape in shapes))

    @property
    def hidden(self) -> int:
        return int(self.r.shape[-1])

    def initializers(self, prefix: str) -> list[TensorProto]:
        return [
            numpy_helper.from_array(array, f"{prefix}_{name}") for name, array in vars(self).items() if name != "op"
        ]


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def oracle(
    weights: Weights, x: Array, h: Array, c: Array | None = None, direction: int = 0
) -> tuple[Array, Array, Array]:
    """Y (N, T, H), h and c (N, H) after `x` (N, T, F) from `h` and `c` (N, H), in double precision."""
    w, r, b = (each[direction].astype(np.float64) for each in (weights.w, weights.r, weights.b))
    hidden = weights.hidden
    bw, br = np.split(b, 2)
    h, c = h.astype(np.float64), np.zeros_like(h, np.float64) if c is None else c.astype(np.float64)
    ys = []
    for t in range(x.shape[1]):
        xs, hs = x[:, t] @ w.T + bw, h @ r.T + br
        if weights.op == "LSTM":
            i, o, f, g = np.split(xs + hs, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        elif weights.op == "GRU":  # linear_before_reset = 1
            z = sigmoid(xs[:, :hidden] + hs[:, :hidden])
            q = sigmoid(xs[:, hidden : 2 * hidden] + hs[:, hidden : 2 * hidden])
            h = (1 - z) * np.tanh(xs[:, 2 * hidden :] + q * hs[:, 2 * hidden :]) + z * h
        else:
            h = np.tanh(xs + hs)
        ys.append(h)
    return np.stack(ys, axis=1), h, c


def info(name: str, dims: Sequence[int | str | None] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def const(name: str, values: Any, dtype: Any = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[TensorProto] = (),
    *,
    custom_domain: str = "",
) -> ModelProto:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(weights))
    opsets = [helper.make_opsetid("", 17)]
    if custom_domain:
        opsets.append(helper.make_opsetid(custom_domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def write(built: ModelProto, root: Path, name: str = "model", version: str = "1", toml: str = "") -> Path:
    """Lays a model out in the repository `root`; its folder."""
    folder = root / name
    (folder / version).mkdir(parents=True, exist_ok=True)
    (folder / version / "model.onnx").write_bytes(built.SerializeToString())
    if toml:
        (folder / "model.toml").write_text(toml)
    return folder


def native(
    op: str = "LSTM",
    *,
    hidden: int = 8,
    features: int = 3,
    layers: int = 1,
    time_major: bool = False,
    initial: str = "missing",
    direction: str = "forward",
    named: bool = True,
    last_only: bool = False,
    batch: int | str | None = None,
    names: Sequence[str] = (),
    attributes: dict[str, Any] | None = None,
) -> tuple[ModelProto, list[Weights]]:
    """Native nodes that keep their state to themselves: x (N, T, F), or (T, N, F), to y.

    Args:
        initial: "missing", "zeros" (one tensor, made from shapes, shared by all), "learned", "frozen" (differs by row).
        named: sizes have names (batch, time).
        names: of the nodes.

    """
    directions = 2 if direction == "bidirectional" else 1
    nodes: list[NodeProto] = []
    weights = [const("flat", [0, 0, -1])]
    outer = ("batch", "time") if named else (None, None)
    outer = (batch if batch is not None else outer[0], outer[1])
    dims = (outer[1], outer[0]) if time_major else outer
    value = "x"
    if not time_major:
        nodes.append(helper.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2]))
        value = "x_time"
    if initial == "zeros":
        weights += [const("axis_batch", 1), const("front", [directions]), const("back", [hidden])]
        nodes += [
            helper.make_node("Shape", [value], ["sizes"]),
            helper.make_node("Gather", ["sizes", "axis_batch"], ["rows0"]),
            helper.make_node("Unsqueeze", ["rows0", "zero"], ["rows"]),
            helper.make_node("Concat", ["front", "rows", "back"], ["state_shape"], axis=0),
            helper.make_node("ConstantOfShape", ["state_shape"], ["zeros"]),
        ]
        weights.append(const("zero", [0]))
    drawn = []
    for layer in range(layers):
        width = features if layer == 0 else hidden * directions
        drawn.append(Weights.draw(op, width, hidden, directions, seed=layer))
        weights += drawn[-1].initializers(f"l{layer}")
        inputs = [value, f"l{layer}_w", f"l{layer}_r", f"l{layer}_b"]
        if initial == "zeros":
            inputs += ["", "zeros"] + (["zeros"] if op == "LSTM" else [])
        elif initial in ("learned", "frozen"):
            count = 1 if initial == "learned" else 2
            kept = np.random.default_rng(9).normal(size=(directions, count, hidden)).astype(np.float32)
            weights.append(numpy_helper.from_array(kept, f"l{layer}_h0"))
            start = f"l{layer}_h0"
            if initial == "learned":  # spread over the batch, as exporters do
                weights += [const(f"l{layer}_front", [directions]), const(f"l{layer}_back", [hidden])]
                nodes += [
                    helper.make_node("Shape", [value], [f"l{layer}_rows"], start=1, end=2),
                    helper.make_node(
                        "Concat", [f"l{layer}_front", f"l{layer}_rows", f"l{layer}_back"], [f"l{layer}_s"], axis=0
                    ),
                    helper.make_node("Expand", [f"l{layer}_h0", f"l{layer}_s"], [f"l{layer}_start"]),
                ]
                start = f"l{layer}_start"
            inputs += ["", start]
        settings = {"hidden_size": hidden, "direction": direction, **(attributes or {})}
        if op == "GRU":
            settings.setdefault("linear_before_reset", 1)
        nodes += [
            helper.make_node(op, inputs, [f"l{layer}_y"], name=names[layer] if names else "", **settings),
            # (T, D, N, H) -> (T, N, D, H) -> (T, N, D*H)
            helper.make_node("Transpose", [f"l{layer}_y"], [f"l{layer}_t"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"l{layer}_t", "flat"], [f"l{layer}_flat"]),
        ]
        value = f"l{layer}_flat"
    if last_only:
        weights += [const("minus_one", -1)]
        nodes.append(helper.make_node("Gather", [value, "minus_one"], ["y"], axis=0))
        out = info("y", [outer[0], hidden * directions])
    elif time_major:
        nodes.append(helper.make_node("Identity", [value], ["y"]))
        out = info("y", [*dims, hidden * directions])
    else:
        nodes.append(helper.make_node("Transpose", [value], ["y"], perm=[1, 0, 2]))
        out = info("y", [*dims, hidden * directions])
    return model(nodes, [info("x", [*dims, features])], [out], weights), drawn


def lstm(*, hidden: int = 8, features: int = 3, time_major: bool = False, layers: int = 1) -> ModelProto:
    """An LSTM that keeps its state to itself."""
    return native("LSTM", hidden=hidden, features=features, time_major=time_major, layers=layers)[0]


def gru_exposed(
    *,
    hidden: int = 8,
    features: int = 3,
    layers: int = 1,
    names: tuple[str, str] = ("h0", "hn"),
    batch: int | str = "batch",
    give_last: bool = False,
) -> tuple[ModelProto, list[Weights]]:
    """A GRU with its state as input and output, (layers, N, H), taken apart and put together as torch does."""
    weights: list[TensorProto] = [const("one", [1]), const("zero_axis", [0])]
    nodes = [helper.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2])]
    value, drawn, finals = "x_time", [], []
    for layer in range(layers):
        drawn.append(Weights.draw("GRU", features if layer == 0 else hidden, hidden, seed=layer))
        weights += drawn[-1].initializers(f"l{layer}")
        weights += [const(f"from{layer}", [layer]), const(f"to{layer}", [layer + 1])]
        start, end = f"l{layer}_start", f"l{layer}_end"
        nodes += [
            helper.make_node("Slice", [names[0], f"from{layer}", f"to{layer}", "zero_axis"], [start]),
            helper.make_node(
                "GRU",
                [value, f"l{layer}_w", f"l{layer}_r", f"l{layer}_b", "", start],
                [f"l{layer}_y", end],
                hidden_size=hidden,
                linear_before_reset=1,
            ),
            helper.make_node("Squeeze", [f"l{layer}_y", "one"], [f"l{layer}_out"]),
        ]
        value = f"l{layer}_out"
        finals.append(end)
    nodes += [
        helper.make_node("Concat", finals, [names[1]], axis=0),
        helper.make_node("Transpose", [value], ["y"], perm=[1, 0, 2]),
    ]
    outputs = [info("y", [batch, "time", hidden]), info(names[1], [layers, batch, hidden])]
    if give_last:
        nodes.append(helper.make_node("Identity", [finals[-1]], ["last"]))
        outputs.append(info("last", [1, batch, hidden]))
    inputs = [info("x", [batch, "time", features]), info(names[0], [layers, batch, hidden])]
    return model(nodes, inputs, outputs, weights), drawn


def one_step_cell(
    *,
    hidden: int = 8,
    features: int = 3,
    names: tuple[str, str] = ("h_in", "h_out"),
    batch: int | str | None = "batch",
    time_of_one: bool = False,
) -> tuple[ModelProto, Weights]:
    """h' = tanh(x W + h R + b) of one timestep: x (N, F), or (N, 1, F), state (N, H), y = h'.

    With batch None the graph has no batch axis at all.
    """
    drawn = Weights.draw("RNN", features, hidden)
    lead = [] if batch is None else [batch]
    weights = [
        numpy_helper.from_array(np.ascontiguousarray(drawn.w[0].T), "w"),
        numpy_helper.from_array(np.ascontiguousarray(drawn.r[0].T), "r"),
        numpy_helper.from_array(drawn.b[0, :hidden] + drawn.b[0, hidden:], "b"),
        const("one", [1]),
    ]
    state, result = names
    nodes = [helper.make_node("Squeeze", ["x", "one"], ["x_flat"])] if time_of_one else []
    nodes += [
        helper.make_node("MatMul", ["x_flat" if time_of_one else "x", "w"], ["xw"]),
        helper.make_node("MatMul", [state, "r"], ["hr"]),
        helper.make_node("Sum", ["xw", "hr", "b"], ["sum"]),
        helper.make_node("Tanh", ["sum"], [result]),
        helper.make_node("Unsqueeze", [result, "one"], ["y"])
        if time_of_one
        else helper.make_node("Identity", [result], ["y"]),
    ]
    middle = [1] if time_of_one else []
    inputs = [info("x", [*lead, *middle, features]), info(state, [*lead, hidden])]
    outputs = [info("y", [*lead, *middle, hidden]), info(result, [*lead, hidden])]
    return model(nodes, inputs, outputs, weights), drawn


def controlled(*, start: int = FLOAT, turned: bool = False) -> ModelProto:
    """One timestep as Triton's models have it: h' = h / 2 + x READY, y = h' + 100 END + CORRID; h is 3 at a START.

    x, h (N, 2), each control (N, 1). `turned`: 0 is START's yes.
    """
    nodes = [
        helper.make_node("Cast", ["START"], ["cast"], to=FLOAT),
        helper.make_node("Sub", ["one", "cast"], ["uncast"]),
        helper.make_node("Mul", ["h_in", "cast" if turned else "uncast"], ["kept"]),
        helper.make_node("Mul", ["three", "uncast" if turned else "cast"], ["begun"]),
        helper.make_node("Add", ["kept", "begun"], ["h"]),
        helper.make_node("Mul", ["h", "half"], ["faded"]),
        helper.make_node("Mul", ["x", "READY"], ["x_ready"]),
        helper.make_node("Add", ["faded", "x_ready"], ["h_out"]),
        helper.make_node("Mul", ["END", "hundred"], ["ends"]),
        helper.make_node("Cast", ["CORRID"], ["sequence"], to=FLOAT),
        helper.make_node("Sum", ["h_out", "ends", "sequence"], ["y"]),
    ]
    numbers = {"one": 1, "half": 0.5, "three": 3, "hundred": 100}
    stored = [const(name, value, np.float32) for name, value in numbers.items()]
    kinds = {"x": FLOAT, "h_in": FLOAT, "START": start, "READY": FLOAT, "END": FLOAT, "CORRID": INT64}
    inputs = [info(name, ["batch", 2 if name in ("x", "h_in") else 1], kind) for name, kind in kinds.items()]
    return model(nodes, inputs, [info("y", ["batch", 2]), info("h_out", ["batch", 2])], stored)


def controlled_run(x: Array) -> Array:
    """What `controlled` gives for x (T, 2) in a sequence 0 that goes on."""
    h, ys = np.full(2, 3.0, np.float32), []
    for row in x:
        h = h / 2 + row
        ys.append(h)
    return np.array(ys)


def embedding_gru(*, words: int = 11, width: int = 4, hidden: int = 8) -> tuple[ModelProto, Array, Weights]:
    """A GRU over a table that int64 tokens (N, T) index."""
    table = np.random.default_rng(5).normal(size=(words, width)).astype(np.float32)
    drawn = Weights.draw("GRU", width, hidden)
    weights = [numpy_helper.from_array(table, "table"), *drawn.initializers("gru"), const("one", [1])]
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["x"]),
        helper.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2]),
        helper.make_node(
            "GRU", ["x_time", "gru_w", "gru_r", "gru_b"], ["gru_y"], hidden_size=hidden, linear_before_reset=1
        ),
        helper.make_node("Squeeze", ["gru_y", "one"], ["y_time"]),
        helper.make_node("Transpose", ["y_time"], ["y"], perm=[1, 0, 2]),
    ]
    built = model(nodes, [info("tokens", ["batch", "time"], INT64)], [info("y", ["batch", "time", hidden])], weights)
    return built, table, drawn


def lstm_with(after: Sequence[NodeProto], weights: Sequence[TensorProto] = (), *, hidden: int = 8) -> ModelProto:
    """x (N, T, 3) through an LSTM to "mid" (N, T, H), and `after` from there to y (N, T, H)."""
    drawn = Weights.draw("LSTM", 3, hidden)
    nodes = [
        helper.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["x_time", "l_w", "l_r", "l_b"], ["l_y"], hidden_size=hidden),
        helper.make_node("Squeeze", ["l_y", "direction_axis"], ["l_out"]),
        helper.make_node("Transpose", ["l_out"], ["mid"], perm=[1, 0, 2]),
        *after,
    ]
    stored = [*drawn.initializers("l"), const("direction_axis", [1]), *weights]
    outputs = [info("y", ["batch", "time", hidden])]
    return model(nodes, [info("x", ["batch", "time", 3])], outputs, stored)


def mean_over_time() -> ModelProto:
    """The mean over the chunk's timesteps is taken away: no timestep's output is known before the last input."""
    return lstm_with(
        [
            helper.make_node("ReduceMean", ["mid"], ["mean"], axes=[1], keepdims=1),
            helper.make_node("Sub", ["mid", "mean"], ["y"]),
        ]
    )


def coupled_rows() -> ModelProto:
    """The mean over the batch is taken away: a row's output depends on its neighbours."""
    return lstm_with(
        [
            helper.make_node("ReduceMean", ["mid"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Mul", ["mean", "mean"], ["square"]),
            helper.make_node("Sub", ["mid", "square"], ["y"]),
        ]
    )


def unread_state() -> ModelProto:
    """A cell whose state "h" is halved and given out, but is never read by the output."""
    nodes = [
        helper.make_node("Mul", ["h_in", "half"], ["h_out"]),
        helper.make_node("Tanh", ["x"], ["y"]),
    ]
    inputs = [info("x", ["batch", 3]), info("h_in", ["batch", 4])]
    outputs = [info("y", ["batch", 3]), info("h_out", ["batch", 4])]
    return model(nodes, inputs, outputs, [const("half", 0.5, np.float32)])


def moving_sum(*, taps: int = 3, stepwise: bool = False) -> ModelProto:
    """A leaky state and a sum over the last `taps` samples, which the graph wants in front of each chunk.

    x (N, T + taps - 1) to y (N, T) with y[t] = x[t] + ... + x[t - taps + 1] + h, h (N, 1) the sum of all chunks' last
    samples, halved each time. With `stepwise` x is (N, 4 + taps - 1), one timestep of 4 samples.
    """
    nodes = [
        helper.make_node("Unsqueeze", ["x", "one"], ["x_channel"]),
        helper.make_node("Conv", ["x_channel", "kernel"], ["summed"]),
        helper.make_node("Squeeze", ["summed", "one"], ["sums"]),
        helper.make_node("Slice", ["x", "minus_one", "end", "one"], ["last"]),
        helper.make_node("Mul", ["h_in", "half"], ["faded"]),
        helper.make_node("Add", ["faded", "last"], ["h_out"]),
        helper.make_node("Add", ["sums", "h_in"] if stepwise else ["sums", "nothing"], ["y"]),
    ]
    weights = [
        const("one", [1]),
        const("minus_one", [-1]),
        const("end", [2**31 - 1]),
        const("half", 0.5, np.float32),
        const("kernel", np.ones((1, 1, taps)), np.float32),
    ]
    if not stepwise:  # the state is read, but the output of a timestep must not depend on the chunk's length
        nodes.insert(0, helper.make_node("Mul", ["h_in", "small"], ["nothing"]))
        nodes[-2] = helper.make_node("Identity", ["h_in"], ["h_out"])
        weights.append(const("small", 1.0, np.float32))
    size = 4 + taps - 1 if stepwise else "time"
    inputs = [info("x", ["batch", size]), info("h_in", ["batch", 1])]
    outputs = [info("y", ["batch", 4 if stepwise else "time_out"]), info("h_out", ["batch", 1])]
    return model(nodes, inputs, outputs, weights)


def scaled_cell(*, dims: Sequence[int | str] = (), kind: int = INT64) -> ModelProto:
    """The one-step cell on x * rate, `rate` a graph input of sizes `dims`."""
    built, _ = one_step_cell()
    graph = built.graph
    graph.input.append(info("rate", dims, kind))
    graph.node[0].input[0] = "x_scaled"
    graph.node.insert(0, helper.make_node("Mul", ["x", "rate_float"], ["x_scaled"]))
    graph.node.insert(0, helper.make_node("Cast", ["rate"], ["rate_float"], to=FLOAT))
    return built


def branching_gru(
    *, hidden: int = 8, exposed: bool = True, other: str = "gru", flag: bool | None = True
) -> tuple[ModelProto, Weights]:
    """A GRU in both branches of an If; its state (1, N, H) is input "memory_a" and output "memory_b", if `exposed`.

    Args:
        other: what stands in the second branch: "gru", "mean", which has no state, or "fresh", the GRU from zeros.
        flag: the constant that decides; None: whether the chunk has more than one timestep.

    """
    drawn = Weights.draw("GRU", 3, hidden)

    def branch(prefix: str, kind: str = "gru") -> onnx.GraphProto:
        inputs = ["x_time", "gru_w", "gru_r", "gru_b"] + (["", "memory_a"] if exposed and kind == "gru" else [])
        outputs = [f"{prefix}y", *([f"{prefix}end"] if exposed else [])]
        node = helper.make_node("GRU", inputs, outputs, name=f"{prefix}gru", hidden_size=hidden, linear_before_reset=1)
        nodes = [node]
        if kind == "mean":
            nodes = [
                helper.make_node("ReduceMean", ["x_time"], [f"{prefix}mean"], axes=[2], keepdims=1),
                helper.make_node("Tile", [f"{prefix}mean", "repeats"], [f"{prefix}tiled"]),
                helper.make_node("Unsqueeze", [f"{prefix}tiled", "one"], [f"{prefix}y"]),
            ]
        return helper.make_graph(nodes, prefix, [], [info(name, None) for name in outputs])

    then, otherwise = branch("a"), branch("b", other)
    given = ["gru_y", *(["memory_b"] if exposed else [])]
    nodes = [
        helper.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2]),
        helper.make_node("If", ["flag"], given, then_branch=then, else_branch=otherwise),
        helper.make_node("Squeeze", ["gru_y", "one"], ["y_time"]),
        helper.make_node("Transpose", ["y_time"], ["y"], perm=[1, 0, 2]),
    ]
    weights = [*drawn.initializers("gru"), const("one", [1]), const("repeats", [1, 1, hidden])]
    if flag is None:
        nodes.insert(1, helper.make_node("Shape", ["x"], ["timesteps"], start=1, end=2))
        nodes.insert(2, helper.make_node("Greater", ["timesteps", "one"], ["flag"]))
    else:
        weights.append(const("flag", flag, np.bool_))
    inputs, outputs = [info("x", ["batch", "time", 3])], [info("y", ["batch", "time", hidden])]
    if exposed:
        inputs.append(info("memory_a", [1, "batch", hidden]))
        outputs.append(info("memory_b", [1, "batch", hidden]))
    return model(nodes, inputs, outputs, weights), drawn


def voice_detector(*, taps: int = 4, frame: int = 8, hidden: int = 4) -> tuple[ModelProto, Weights]:
    """As voice detectors are exported: audio (N, samples), state (2, N, H) with h and c, rate () to p (N, 1), stateN.

    It wants `taps` samples of context in front of each frame; the frame's sums over four halves are one timestep of an
    LSTM inside.
    """
    drawn = Weights.draw("LSTM", 4, hidden)
    nodes = [
        helper.make_node("Reshape", ["audio", "quarters"], ["parts"]),
        helper.make_node("ReduceSum", ["parts", "last_axis"], ["sums"], keepdims=0),
        helper.make_node("Unsqueeze", ["sums", "zero"], ["step"]),
        helper.make_node("Split", ["state"], ["h0", "c0"], axis=0),
        helper.make_node("LSTM", ["step", "l_w", "l_r", "l_b", "", "h0", "c0"], ["", "h1", "c1"], hidden_size=hidden),
        helper.make_node("Concat", ["h1", "c1"], ["stateN"], axis=0),
        helper.make_node("Squeeze", ["h1", "zero"], ["h_flat"]),
        helper.make_node("ReduceSum", ["h_flat", "last"], ["summed"], keepdims=1),
        helper.make_node("Cast", ["rate"], ["rate_float"], to=FLOAT),
        helper.make_node("Div", ["summed", "rate_float"], ["p"]),
    ]
    weights = [
        *drawn.initializers("l"),
        const("quarters", [-1, 4, (frame + taps) // 4]),
        const("last_axis", [2]),
        const("last", [1]),
        const("zero", [0]),
    ]
    inputs = [info("audio", [None, None]), info("state", [2, None, hidden]), info("rate", [], INT64)]
    outputs = [info("p", [None, 1]), info("stateN", [None, None, None])]
    return model(nodes, inputs, outputs, weights), drawn


def lstm_with_lengths() -> ModelProto:
    """An LSTM that reads its chunk's lengths from an input, as an export of packed sequences does."""
    built = lstm()
    built.graph.input.append(info("lengths", ["batch"], INT64))
    node = next(each for each in built.graph.node if each.op_type == "LSTM")
    node.input.append("lengths32")
    built.graph.node.insert(0, helper.make_node("Cast", ["lengths"], ["lengths32"], to=TensorProto.INT32))
    return built


def run(built: ModelProto, feed: dict[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
    """The runtime's own answer on the CPU."""
    session = Session(built.SerializeToString(), "cpu")
    return session.run(outputs or session.outputs, feed)
