"""Graphs of one timestep, by hand, of cells that have no native node; states go in as name and come out as name_new."""

from __future__ import annotations

import graphs
import loops
import numpy as np
from graphs import Weights, const, info
from onnx import ModelProto, helper


def conv_lstm(*, channels: int = 2, filters: int = 3, size: int = 5, fixed: bool = True) -> ModelProto:
    """A ConvLSTM2D cell, channels first: x (N, C, H, W), h and c (N, F, H, W), y = h'."""
    rng = np.random.default_rng(2)
    side = size if fixed else None
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "bias"], ["xw"], pads=[1] * 4),
        helper.make_node("Conv", ["h", "recurrent"], ["hr"], pads=[1] * 4),
        helper.make_node("Add", ["xw", "hr"], ["sum"]),
        helper.make_node("Split", ["sum", "quarters"], ["i", "f", "g", "o"], axis=1),
        *(helper.make_node("Sigmoid", [gate], [f"{gate}_on"]) for gate in "ifo"),
        helper.make_node("Tanh", ["g"], ["g_on"]),
        helper.make_node("Mul", ["f_on", "c"], ["kept"]),
        helper.make_node("Mul", ["i_on", "g_on"], ["added"]),
        helper.make_node("Add", ["kept", "added"], ["c_new"]),
        helper.make_node("Tanh", ["c_new"], ["c_on"]),
        helper.make_node("Mul", ["o_on", "c_on"], ["h_new"]),
        helper.make_node("Identity", ["h_new"], ["y"]),
    ]
    weights = [
        const("kernel", rng.normal(0, 0.3, (4 * filters, channels, 3, 3)), np.float32),
        const("recurrent", rng.normal(0, 0.3, (4 * filters, filters, 3, 3)), np.float32),
        const("bias", rng.normal(0, 0.3, 4 * filters), np.float32),
        const("quarters", [filters] * 4),
    ]
    states = ["batch", filters, side, side]
    inputs = [info("x", ["batch", channels, side, side]), info("h", states), info("c", states)]
    outputs = [info("y", states), info("h_new", states), info("c_new", states)]
    return graphs.model(nodes, inputs, outputs, weights)


def stacked(*, features: int = 3, hidden: int = 4) -> tuple[ModelProto, list[Weights]]:
    """An LSTM cell under an RNN cell: xt (N, F), states a_h, a_c, b_h (N, H), y = b_h'."""
    lower = Weights.draw("LSTM", features, hidden, seed=1)
    upper = Weights.draw("RNN", hidden, hidden, seed=2)
    first, _, stored = loops.cell(lower, "a_")
    second, _, more = loops.cell(upper, "b_")
    second[0].input[0] = "a_h_new"
    nodes = [*first, *second, helper.make_node("Identity", ["b_h_new"], ["y"])]
    names = ["a_h", "a_c", "b_h"]
    inputs = [info("xt", ["n", features]), *(info(name, ["n", hidden]) for name in names)]
    outputs = [info("y", ["n", hidden]), *(info(f"{name}_new", ["n", hidden]) for name in names)]
    return graphs.model(nodes, inputs, outputs, [*stored, *more]), [lower, upper]


def projected(*, features: int = 3, hidden: int = 6, size: int = 4) -> ModelProto:
    """An LSTM cell whose hidden state is projected, as torch's proj_size: h (N, P), c (N, H)."""
    weights = Weights.draw("LSTM", features, hidden, seed=3)
    nodes, _, stored = loops.cell(weights)
    rng = np.random.default_rng(4)
    stored[1] = const("r", rng.normal(0, 0.4, (size, 4 * hidden)), np.float32)
    stored.append(const("projection", rng.normal(0, 0.4, (hidden, size)), np.float32))
    nodes[-1].output[0] = "h_wide"
    nodes += [
        helper.make_node("MatMul", ["h_wide", "projection"], ["h_new"]),
        helper.make_node("Identity", ["h_new"], ["y"]),
    ]
    inputs = [info("xt", ["batch", features]), info("h", ["batch", size]), info("c", ["batch", hidden])]
    outputs = [info("y", ["batch", size]), info("h_new", ["batch", size]), info("c_new", ["batch", hidden])]
    return graphs.model(nodes, inputs, outputs, stored)
