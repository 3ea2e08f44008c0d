"""The models that the tests serve, and what each must answer: the whole input run at once, in numpy.

"lstm": x (N, T, 3) float32 through a native LSTM that hides its state and a dense layer, y (N, T, 2).
"gru": time-major, x (T, N, 3) with its state given in and out, y (T, N, 4); its start graph reads a source (N, S, 5).
"cell": one timestep a call, x (N, 3), y (N, 4).
"embed": tokens (N, T) int64 below 11 index a table, y (N, T, 4).
"picky": one timestep a call, x (N, 2), h' = h / 2 + x, y = h'; fails on x[0] > 1000, and its state can overflow.
"broken": no model at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from tests.models import graphs

Array = NDArray[Any]
Run = Callable[..., tuple[Array, ...]]

WORDS = 11
CLOSE = {"rtol": 0, "atol": 1e-5}


@dataclass(frozen=True)
class Recurrent:
    """One model.

    Attributes:
        run: (x (T, ...), state...) to (y (T, ...), state...), of one session.
        fresh: the state of a new session.
    """

    name: str
    built: ModelProto
    run: Run
    fresh: tuple[Array, ...]

    def whole(self, *chunks: Array, state: tuple[Array, ...] | None = None) -> Array:
        """What the chunks must give together, from the fresh state or from `state`."""
        return self.run(np.concatenate(chunks), *(self.fresh if state is None else state))[0]

    def after(self, *chunks: Array, state: tuple[Array, ...] | None = None) -> tuple[Array, ...]:
        """The state after the chunks."""
        return self.run(np.concatenate(chunks), *(self.fresh if state is None else state))[1:]

    def draw(self, seed: int, timesteps: int) -> Array:
        """A chunk that the model accepts."""
        rng = np.random.default_rng(seed)
        if self.name == "embed":
            return rng.integers(0, WORDS, timesteps)
        features = 2 if self.name == "picky" else 3
        return rng.standard_normal((timesteps, features)).astype(np.float32)


def lstm(hidden: int = 6) -> Recurrent:
    weights = graphs.Weights.draw("LSTM", 3, hidden)
    dense = np.random.default_rng(1).normal(0, 0.5, (hidden, 2)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["x_time", "l_w", "l_r", "l_b"], ["l_y"], name="lstm_1", hidden_size=hidden),
        helper.make_node("Squeeze", ["l_y", "one"], ["l_out"]),
        helper.make_node("Transpose", ["l_out"], ["l_rows"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["l_rows", "dense"], ["y"]),
    ]
    stored = [*weights.initializers("l"), numpy_helper.from_array(dense, "dense"), graphs.const("one", [1])]
    built = graphs.model(
        nodes, [graphs.info("x", ["batch", "time", 3])], [graphs.info("y", ["batch", "time", 2])], stored
    )

    def run(x: Array, h: Array, c: Array) -> tuple[Array, ...]:
        ys, h, c = graphs.oracle(weights, x[None], h.reshape(1, -1), c.reshape(1, -1))
        return ys[0] @ dense, h, c

    zeros = np.zeros((1, hidden), np.float32)
    return Recurrent("lstm", built, run, (zeros, zeros))


def gru(hidden: int = 4) -> Recurrent:
    weights = graphs.Weights.draw("GRU", 3, hidden, seed=2)
    nodes = [
        helper.make_node(
            "GRU", ["x", "g_w", "g_r", "g_b", "", "h0"], ["g_y", "hn"], hidden_size=hidden, linear_before_reset=1
        ),
        helper.make_node("Squeeze", ["g_y", "one"], ["y"]),
    ]
    built = graphs.model(
        nodes,
        [graphs.info("x", ["time", "batch", 3]), graphs.info("h0", [1, "batch", hidden])],
        [graphs.info("y", ["time", "batch", hidden]), graphs.info("hn", [1, "batch", hidden])],
        [*weights.initializers("g"), graphs.const("one", [1])],
    )
    return Recurrent("gru", built, _running(weights), (np.zeros((1, hidden), np.float32),))


def encoder(hidden: int = 4) -> tuple[ModelProto, Callable[[Array], Array]]:
    """The start graph of "gru", and what it gives: a source (S, 5) to the state (1, hidden)."""
    weights = graphs.Weights.draw("GRU", 5, hidden, seed=8)
    nodes = [
        helper.make_node("Transpose", ["source"], ["s_time"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["s_time", "s_w", "s_r", "s_b"], ["", "h0"], hidden_size=hidden, linear_before_reset=1),
    ]
    inputs, outputs = [graphs.info("source", ["batch", "length", 5])], [graphs.info("h0", [1, "batch", hidden])]
    built = graphs.model(nodes, inputs, outputs, weights.initializers("s"))

    def run(source: Array) -> Array:
        return graphs.oracle(weights, source[None], np.zeros((1, hidden)))[1].astype(np.float32)

    return built, run


def cell() -> Recurrent:
    built, weights = graphs.one_step_cell(hidden=4)
    return Recurrent("cell", built, _running(weights), (np.zeros(4, np.float32),))


def embed() -> Recurrent:
    built, table, weights = graphs.embedding_gru(words=WORDS, hidden=4)
    run = _running(weights)
    return Recurrent("embed", built, lambda tokens, h: run(table[tokens], h), (np.zeros((1, 4), np.float32),))


def picky() -> Recurrent:
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "one"], ["first"]),
        helper.make_node("Greater", ["first", "limit"], ["beyond"]),
        helper.make_node("Cast", ["beyond"], ["index"], to=graphs.INT64),
        helper.make_node("Gather", ["table", "index"], ["nothing"]),  # fails on a 1: there is only one row
        helper.make_node("Mul", ["h_in", "half"], ["faded"]),
        helper.make_node("Sum", ["faded", "x", "nothing"], ["h_out"]),
        helper.make_node("Identity", ["h_out"], ["y"]),
    ]
    stored = [
        graphs.const("zero", [0]),
        graphs.const("one", [1]),
        graphs.const("limit", 1000, np.float32),
        graphs.const("half", 0.5, np.float32),
        graphs.const("table", [0], np.float32),
    ]
    built = graphs.model(
        nodes,
        [graphs.info("x", ["batch", 2]), graphs.info("h_in", ["batch", 2])],
        [graphs.info("y", ["batch", 2]), graphs.info("h_out", ["batch", 2])],
        stored,
    )

    def run(x: Array, h: Array) -> tuple[Array, ...]:
        ys = []
        for row in x:
            h = h / 2 + row
            ys.append(h)
        return np.array(ys), h

    return Recurrent("picky", built, run, (np.zeros(2, np.float32),))


def _running(weights: graphs.Weights) -> Run:
    def run(x: Array, h: Array) -> tuple[Array, ...]:
        ys, after, _ = graphs.oracle(weights, x[None], h.reshape(1, -1))
        return ys[0], after.reshape(h.shape)

    return run


MODELS = {model.name: model for model in (lstm(), gru(), cell(), embed(), picky())}


def lay_out(root: Path) -> Path:
    """The model repository that the tests serve, in the folder `root`."""
    for model in MODELS.values():
        graphs.write(model.built, root, model.name)
    (root / "gru/1/start.onnx").write_bytes(encoder()[0].SerializeToString())
    (root / "broken/1").mkdir(parents=True)
    (root / "broken/1/model.onnx").write_bytes(b"this is no model")
    return root
