"""Causal convolutions: what the file pads with a constant in front, a session has from the chunk before."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper
from test_lift import chunked

from recurra.models import ModelRefused, load

RANDOM = np.random.default_rng(21)


def convolution(
    name: str, data: str, channels: tuple[int, int], *, taps: int = 3, dilation: int = 1, before: Any = None
) -> tuple[list[NodeProto], list[TensorProto]]:
    """A Conv over (N, C, T) behind a Pad in front, as frameworks write a causal one; makes `name`."""
    wide = dilation * (taps - 1)
    pads = [0, 0, wide, 0, 0, 0] if before is None else before
    nodes = [
        helper.make_node("Pad", [data, f"{name}_pads", f"{name}_with"], [f"{name}_padded"], name=f"net/{name}/Pad"),
        helper.make_node("Conv", [f"{name}_padded", f"{name}_w"], [name], dilations=[dilation]),
    ]
    weights = RANDOM.normal(0, 0.5, (channels[1], channels[0], taps)).astype(np.float32)
    stored = [graphs.const(f"{name}_w", weights, np.float32), graphs.const(f"{name}_pads", pads)]
    return nodes, [*stored, graphs.const(f"{name}_with", 0.25, np.float32)]


def stack(*parts: tuple[Sequence[NodeProto], Sequence[TensorProto]], end: str, channels: int) -> ModelProto:
    nodes, stored = [node for part in parts for node in part[0]], [each for part in parts for each in part[1]]
    nodes.append(helper.make_node("Tanh", [end], ["y"]))
    inputs, outputs = [graphs.info("x", ["batch", 3, "time"])], [graphs.info("y", ["batch", channels, "time"])]
    return graphs.model(nodes, inputs, outputs, stored)


def two() -> ModelProto:
    """A plain and a dilated convolution, and no recurrent layer."""
    first, second = convolution("near", "x", (3, 5)), convolution("far", "near", (5, 4), taps=2, dilation=4)
    return stack(first, second, end="far", channels=4)


def before_an_lstm() -> ModelProto:
    weights = graphs.Weights.draw("LSTM", 5, 4)
    nodes, stored = convolution("front", "x", (3, 5))
    nodes += [
        helper.make_node("Transpose", ["front"], ["f_time"], perm=[2, 0, 1]),
        helper.make_node("LSTM", ["f_time", "l_w", "l_r", "l_b"], ["l_y"], name="lstm_1", hidden_size=4),
        helper.make_node("Squeeze", ["l_y", "one"], ["l_out"]),
        helper.make_node("Transpose", ["l_out"], ["rows"], perm=[1, 2, 0]),
    ]
    return stack((nodes, [*stored, *weights.initializers("l"), graphs.const("one", [1])]), end="rows", channels=4)


@pytest.mark.parametrize(
    ("built", "states"),
    [
        (two(), {"near/context": (3, 2), "far/context": (5, 4)}),
        (before_an_lstm(), {"lstm_1/h": (1, 4), "lstm_1/c": (1, 4), "front/context": (3, 2)}),
    ],
)
def test_chunks_give_what_the_file_gives_at_once(tmp_path: Path, built: ModelProto, states: dict[str, tuple[int, ...]]):
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert {state.name: state.shape for state in model.signature.states} == states
    assert (model.self_test.chunked, model.self_test.batched) == (True, True)
    x = RANDOM.normal(size=(2, 9, 3)).astype(np.float32)
    (whole,) = graphs.run(built, {"x": np.ascontiguousarray(x.transpose(0, 2, 1))})
    for sizes in ((4, 1, 1, 3), (1,) * 9, (9,)):
        y, _ = chunked(model, x, sizes)
        np.testing.assert_allclose(y, whole.transpose(0, 2, 1), atol=1e-6)


def test_a_new_session_has_the_constant_that_the_file_pads_with(tmp_path: Path):
    model = load(graphs.write(two(), tmp_path), provider="cpu")
    assert {float(state.fresh.min()) for state in model.signature.states} == {0.25}


@pytest.mark.parametrize("pads", [[0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 2]], ids=["around", "behind"])
def test_a_convolution_that_looks_ahead_is_refused_as_before(tmp_path: Path, pads: list[int]):
    built = stack(convolution("front", "x", (3, 5), before=pads), end="front", channels=5)
    with pytest.raises(ModelRefused, match="no state found"):
        load(graphs.write(built, tmp_path), provider="cpu")


def test_channels_that_are_padded_are_no_state(tmp_path: Path):
    """An axis whose size the file fixes is not time."""
    nodes, stored = convolution("front", "x", (4, 5), taps=1, before=[0, 1, 0, 0, 0, 0])
    built = stack((nodes, stored), end="front", channels=5)
    with pytest.raises(ModelRefused, match="no state found"):
        load(graphs.write(built, tmp_path), provider="cpu")
