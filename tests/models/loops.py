"""Recurrent graphs written as Loop or Scan, by hand, as exporters write them, and what they must give, in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import graphs
import numpy as np
from graphs import FLOAT, INT64, Array, Weights, const, info
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

BOOL, INT32 = TensorProto.BOOL, TensorProto.INT32

ACCUMULATORS = ("scan", "concat", "sequence", "scatter")


def cell(weights: Weights, prefix: str = "") -> tuple[list[NodeProto], list[str], list[TensorProto]]:
    """One timestep of an RNN or LSTM from "xt" (N, F) and the states, the names of the new states, and the weights.

    Weights are called prefix + w (F, G*H), r, b; states prefix + h and prefix + c.
    """
    p, count = prefix, weights.hidden
    stored = [
        numpy_helper.from_array(np.ascontiguousarray(weights.w[0].T), f"{p}w"),
        numpy_helper.from_array(np.ascontiguousarray(weights.r[0].T), f"{p}r"),
        numpy_helper.from_array(weights.b[0].reshape(2, -1).sum(0), f"{p}b"),
    ]
    nodes = [
        helper.make_node("MatMul", ["xt", f"{p}w"], [f"{p}xw"]),
        helper.make_node("MatMul", [f"{p}h", f"{p}r"], [f"{p}hr"]),
        helper.make_node("Sum", [f"{p}xw", f"{p}hr", f"{p}b"], [f"{p}sum"]),
    ]
    if weights.op == "RNN":
        return [*nodes, helper.make_node("Tanh", [f"{p}sum"], [f"{p}h_new"])], [f"{p}h_new"], stored
    stored.append(const(f"{p}quarters", [count] * 4))
    gates = [f"{p}{name}" for name in "iofg"]
    nodes += [
        helper.make_node("Split", [f"{p}sum", f"{p}quarters"], gates, axis=1),
        *(helper.make_node("Sigmoid", [gate], [f"{gate}_on"]) for gate in gates[:3]),
        helper.make_node("Tanh", [gates[3]], [f"{p}g_on"]),
        helper.make_node("Mul", [f"{p}f_on", f"{p}c"], [f"{p}kept"]),
        helper.make_node("Mul", [f"{p}i_on", f"{p}g_on"], [f"{p}added"]),
        helper.make_node("Add", [f"{p}kept", f"{p}added"], [f"{p}c_new"]),
        helper.make_node("Tanh", [f"{p}c_new"], [f"{p}c_on"]),
        helper.make_node("Mul", [f"{p}o_on", f"{p}c_on"], [f"{p}h_new"]),
    ]
    return nodes, [f"{p}h_new", f"{p}c_new"], stored


def keras(
    op: str = "RNN",
    *,
    hidden: int = 8,
    features: int = 3,
    initial: str = "zeros",
    accumulator: str = "scan",
    masked: bool = False,
    last_only: bool = False,
    named: bool = True,
    reverse: bool = False,
    name: str = "model/rnn_7/while_loop",
) -> tuple[ModelProto, Weights]:
    """A Keras layer that has no native form, as tf2onnx writes it: x (N, T, F) to y.

    The Loop's trip count is without bound; its body counts the timesteps itself, and carries the counter, the limit,
    the weights, the states, and the last output where timesteps may be masked (all features 0).

    Args:
        initial: "zeros", "learned", "frozen" (differs by row), "row" (one row that the first iteration spreads).
        accumulator: one of ACCUMULATORS.

    """
    weights = Weights.draw(op, features, hidden)
    steps, news, stored = cell(weights)
    kinds = ["h", "c"][: len(news)]
    counted: list[tuple[str, str, Sequence[Any] | None, int]] = [
        ("counter", "counter_new", [], INT32),
        ("limit", "limit_same", [], INT32),
        ("w", "w_same", None, FLOAT),
        ("r", "r_same", None, FLOAT),
        *((kind, f"{kind}_out", None, FLOAT) for kind in kinds),
    ]
    if masked:
        counted.append(("held", "out", None, FLOAT))
    body = [
        helper.make_node("Gather", ["x_time", "counter"], ["xt"], axis=0),
        *steps,
        helper.make_node("Add", ["counter", "one32"], ["counter_new"]),
        helper.make_node("Identity", ["limit"], ["limit_between"]),
        helper.make_node("Identity", ["limit_between"], ["limit_same"]),
        helper.make_node("Identity", ["w"], ["w_same"]),
        helper.make_node("Identity", ["r"], ["r_same"]),
        helper.make_node("Less", ["counter_new", "limit"], ["going_new"]),
    ]
    if masked:
        body += [
            helper.make_node("Abs", ["xt"], ["size"]),
            helper.make_node("ReduceMax", ["size"], ["largest"], axes=[1], keepdims=1),
            helper.make_node("Cast", ["largest"], ["seen"], to=BOOL),
            *(helper.make_node("Where", ["seen", f"{kind}_new", kind], [f"{kind}_out"]) for kind in kinds),
            helper.make_node("Where", ["seen", "h_new", "held"], ["out"]),
        ]
    else:
        body += [helper.make_node("Identity", [f"{kind}_new"], [f"{kind}_out"]) for kind in kinds]
        body.append(helper.make_node("Identity", ["h_new"], ["out"]))
    outer = [
        helper.make_node("Transpose", ["x"], ["x_forward"], perm=[1, 0, 2]),
        helper.make_node("Shape", ["x_forward"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["timesteps"]),
        helper.make_node("Gather", ["sizes", "second"], ["rows"]),
        helper.make_node("Cast", ["timesteps"], ["limit_start"], to=INT32),
        helper.make_node("Less", ["zero32", "limit_start"], ["going_start"]),
        helper.make_node("Unsqueeze", ["rows", "axis0"], ["row_count"]),
    ]
    flip = helper.make_node("Slice", ["x_forward", "minus_one", "least", "axis0", "minus_one"], ["x_time"])
    outer.append(flip if reverse else helper.make_node("Identity", ["x_forward"], ["x_time"]))
    numbers = [
        const("first", 0),
        const("second", 1),
        const("axis0", [0]),
        const("axis1", [1]),
        const("minus_one", [-1]),
        const("least", [-(2**31)]),
        const("zero32", 0, np.int32),
        const("one32", 1, np.int32),
        const("forever", 2**62),
        const("width", [hidden]),
    ]
    starts, drawn = _starts(initial, len(kinds), hidden)
    outer += starts
    first = ["counter_start", "limit_start", "w", "r", *(f"{kind}_start" for kind in kinds)]
    outer.append(helper.make_node("Identity", ["zero32"], ["counter_start"]))
    ends = ["counter_end", "limit_end", "w_end", "r_end", *(f"{kind}_end" for kind in kinds)]
    if masked:
        first.append("zeros")
        ends.append("held_end")
    # The names in the body hide the outer ones.
    outputs = [info("going_new", [], BOOL), *(info(after, None, kind) for _, after, _, kind in counted)]
    taken = [info(before, dims, kind) for before, _, dims, kind in counted]
    gather, extra_in, extra_out, collect, joined = _accumulate(accumulator)
    body += gather
    outer += extra_in[0]
    inputs = [info("iteration", [], INT64), info("going", [], BOOL), *taken, *extra_in[1]]
    graph = helper.make_graph(body, "body", inputs, [*outputs, *extra_out])
    outer.append(
        helper.make_node(
            "Loop",
            ["forever", "going_start", *first, *extra_in[2]],
            [*ends, collect],
            body=graph,
            name=name,
        )
    )
    outer += joined
    sizes = ["batch", "time"] if named else [None, None]
    if last_only:
        outer.append(helper.make_node("Gather", ["y_time", "minus_first"], ["y"], axis=0))
        numbers.append(const("minus_first", -1))
        result = info("y", [sizes[0], hidden])
    else:
        outer.append(helper.make_node("Transpose", ["y_time"], ["y"], perm=[1, 0, 2]))
        result = info("y", [*sizes, hidden])
    return graphs.model(outer, [info("x", [*sizes, features])], [result], [*numbers, *stored, *drawn]), weights


def _starts(initial: str, states: int, hidden: int) -> tuple[list[NodeProto], list[TensorProto]]:
    kinds = ["h", "c"][:states]
    zeros = [
        helper.make_node("Concat", ["row_count", "width"], ["state_shape"], axis=0),
        helper.make_node("ConstantOfShape", ["state_shape"], ["zeros"]),
    ]
    drawn = np.random.default_rng(8).normal(size=(2, hidden)).astype(np.float32)
    if initial == "zeros":
        return [*zeros, *(helper.make_node("Identity", ["zeros"], [f"{kind}_start"]) for kind in kinds)], []
    if initial == "learned":
        spread = [helper.make_node("Expand", ["learned", "state_shape"], [f"{kind}_start"]) for kind in kinds]
        return [*zeros, *spread], [const("learned", drawn[:1], np.float32)]
    kept = const("learned", drawn if initial == "frozen" else drawn[:1], np.float32)
    return [*zeros, *(helper.make_node("Identity", ["learned"], [f"{kind}_start"]) for kind in kinds)], [kept]


def _accumulate(
    kind: str,
) -> tuple[list[NodeProto], tuple[list[NodeProto], list[Any], list[str]], list[Any], str, list[NodeProto]]:
    """Body nodes, (outer nodes, body inputs, first values), body outputs, the output, nodes from there to y_time."""
    if kind == "scan":
        return [], ([], [], []), [info("out", None)], "y_time", []
    if kind == "sequence":
        value = helper.make_tensor_sequence_value_info
        return (
            [helper.make_node("SequenceInsert", ["list", "out"], ["list_new"])],
            ([helper.make_node("SequenceEmpty", [], ["list_start"])], [value("list", FLOAT, None)], ["list_start"]),
            [value("list_new", FLOAT, None)],
            "list_end",
            [helper.make_node("ConcatFromSequence", ["list_end"], ["y_time"], axis=0, new_axis=1)],
        )
    if kind == "concat":
        start = [
            helper.make_node("Concat", ["axis0", "row_count", "width"], ["list_shape"], axis=0),
            helper.make_node("ConstantOfShape", ["list_shape"], ["list_start"]),
        ]
        step = [
            helper.make_node("Unsqueeze", ["out", "axis0"], ["out_one"]),
            helper.make_node("Concat", ["list", "out_one"], ["list_new"], axis=0),
        ]
    else:
        start = [
            helper.make_node("Unsqueeze", ["timesteps", "axis0"], ["step_count"]),
            helper.make_node("Concat", ["step_count", "row_count", "width"], ["list_shape"], axis=0),
            helper.make_node("ConstantOfShape", ["list_shape"], ["list_start"]),
        ]
        step = [
            helper.make_node("Unsqueeze", ["out", "axis0"], ["out_one"]),
            helper.make_node("Reshape", ["counter", "both"], ["where"]),
            helper.make_node("ScatterND", ["list", "where", "out_one"], ["list_new"]),
        ]
        start.append(helper.make_node("Constant", [], ["both"], value=const("", [1, 1])))
        step.insert(1, helper.make_node("Cast", ["counter"], ["counter64"], to=INT64))
        step[2].input[0] = "counter64"
    return step, (start, [info("list", None)], ["list_start"]), [info("list_new", None)], "y_time", []


def scan(
    *, hidden: int = 8, features: int = 3, op: str = "LSTM", backwards: bool = False
) -> tuple[ModelProto, Weights]:
    """An LSTM as a Scan over x (N, T, F), its states starting from zeros."""
    weights = Weights.draw(op, features, hidden)
    steps, news, stored = cell(weights)
    kinds = ["h", "c"][: len(news)]
    body: GraphProto = helper.make_graph(
        [*steps, helper.make_node("Identity", ["h_new"], ["out"])],
        "body",
        [*(info(kind, ["rows", hidden]) for kind in kinds), info("xt", ["rows", features])],
        [*(info(new, ["rows", hidden]) for new in news), info("out", ["rows", hidden])],
    )
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["rows", "width"], ["state_shape"], axis=0),
        helper.make_node("ConstantOfShape", ["state_shape"], ["zeros"]),
        helper.make_node(
            "Scan",
            ["zeros"] * len(kinds) + ["x"],
            [*(f"{kind}_end" for kind in kinds), "y"],
            body=body,
            num_scan_inputs=1,
            scan_input_axes=[1],
            scan_output_axes=[1],
            scan_input_directions=[int(backwards)],
            scan_output_directions=[int(backwards)],
        ),
    ]
    inputs, outputs = [info("x", ["batch", "time", features])], [info("y", ["batch", "time", hidden])]
    return graphs.model(nodes, inputs, outputs, [*stored, const("width", [hidden])]), weights


def masked_oracle(weights: Weights, x: Array, h: Array, held: Array) -> tuple[Array, Array, Array]:
    """Outputs (N, T, H), last state and last output of an RNN that skips timesteps of zeros."""
    ys = []
    for t in range(x.shape[1]):
        seen = np.abs(x[:, t]).max(1, keepdims=True) > 0
        _, new, _ = graphs.oracle(weights, x[:, t : t + 1], h)
        h, held = np.where(seen, new, h), np.where(seen, new, held)
        ys.append(held)
    return np.stack(ys, axis=1), h, held
