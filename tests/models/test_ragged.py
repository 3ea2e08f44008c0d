from pathlib import Path

import graphs
import loops
import numpy as np
import onnx
import pytest
import steps
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from recurra.models import Model, load
from recurra.models.lengths import with_lengths
from recurra.models.lift import lift
from recurra.models.over_time import over_time

LENGTHS = np.array([4, 6, 1])


def loaded(built: ModelProto, root: Path) -> Model:
    return load(graphs.write(built, root), provider="cpu")


def branching() -> ModelProto:
    """A GRU that takes another branch of the graph once a zero is in the chunk, where each row is told the longest."""
    weights = graphs.Weights.draw("GRU", 3, 4)

    def branch(name: str, *before: NodeProto, lengths: str = "") -> GraphProto:
        told = ["x_time", "g_w", "g_r", "g_b", lengths, "h0"]
        made = [f"{name}_y", f"{name}_h"]
        node = helper.make_node("GRU", told, made, hidden_size=4, linear_before_reset=1)
        outputs = [graphs.info(made[0], ["time", 1, "batch", 4]), graphs.info(made[1], [1, "batch", 4])]
        return helper.make_graph([*before, node], name, [], outputs)

    longest = [
        helper.make_node("Shape", ["x_time"], ["time"], start=0, end=1),
        helper.make_node("Shape", ["x_time"], ["rows"], start=1, end=2),
        helper.make_node("Expand", ["time", "rows"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["lengths"], to=TensorProto.INT32),
    ]
    nodes = [
        helper.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2]),
        helper.make_node("Abs", ["x"], ["sizes"]),
        helper.make_node("ReduceMin", ["sizes"], ["least"], keepdims=0),
        helper.make_node("Cast", ["least"], ["full"], to=TensorProto.BOOL),
        helper.make_node(
            "If",
            ["full"],
            ["g_y", "h1"],
            then_branch=branch("full"),
            else_branch=branch("holed", *longest, lengths="lengths"),
        ),
        helper.make_node("Squeeze", ["g_y", "one"], ["y_time"]),
        helper.make_node("Transpose", ["y_time"], ["y"], perm=[1, 0, 2]),
    ]
    inputs = [graphs.info("x", ["batch", "time", 3]), graphs.info("h0", [1, "batch", 4])]
    outputs = [graphs.info("y", ["batch", "time", 4]), graphs.info("h1", [1, "batch", 4])]
    return graphs.model(nodes, inputs, outputs, [*weights.initializers("g"), graphs.const("one", [1])])


def is_ragged(built: ModelProto, root: Path) -> bool:
    return loaded(built, root).self_test.ragged


def looped() -> dict[str, ModelProto]:
    """Loops and Scans whose rows can stop at their own ends."""
    step = steps.conv_lstm()
    states = {value.name: f"{value.name}_new" for value in step.graph.input[1:]}
    return {
        "an RNN in a Loop": loops.keras()[0],
        "an LSTM in a Loop": loops.keras("LSTM")[0],
        "a masked RNN in a Loop": loops.keras(masked=True)[0],
        "an LSTM in a Scan": loops.scan()[0],
        "a ConvLSTM2D cell over time": over_time(step, states),
    }


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_native_nodes_take_rows_of_several_lengths(tmp_path: Path, op: str, direction: str):
    built, (weights,) = graphs.native(op, direction=direction)
    assert is_ragged(built, tmp_path)
    lift(built)
    name = with_lengths(built, {})
    onnx.checker.check_model(built)
    x = np.random.default_rng(3).normal(size=(3, 6, 3)).astype(np.float32)
    states = {value.name: np.zeros((len(weights.w), 3, 8), np.float32) for value in built.graph.input[1:-1]}
    y, h, *_ = graphs.run(built, {"x": x, **states, name: LENGTHS.astype(np.int32)})
    for row, length in enumerate(LENGTHS):
        alone, end, _ = graphs.oracle(weights, x[row : row + 1, :length], np.zeros((1, 8)))
        np.testing.assert_allclose(y[row, :length, :8], alone[0], atol=1e-6)
        np.testing.assert_allclose(h[0, row], end[0], atol=1e-6)


@pytest.mark.parametrize("what", looped())
def test_what_loops_carry_stops_at_each_rows_end(tmp_path: Path, what: str):
    model = loaded(looped()[what], tmp_path)
    assert model.ragged is not None
    shape = [size or 0 for size in model.signature.inputs[0].shape]
    x = np.random.default_rng(5).normal(size=(3, 6, *shape)).astype(np.float32)
    states = [np.random.default_rng(6).normal(size=(3, *spec.shape)) for spec in model.signature.states]
    states = [
        np.ascontiguousarray(np.moveaxis(state, 0, spec.batch_axis), spec.dtype)
        for state, spec in zip(states, model.signature.states, strict=True)
    ]
    (y,), news = model.ragged.run([x], states, LENGTHS)
    for row, length in enumerate(LENGTHS):
        mine = [
            np.ascontiguousarray(state.take([row], spec.batch_axis))
            for state, spec in zip(states, model.signature.states, strict=True)
        ]
        (alone,), ends = model.program.run([x[row : row + 1, :length]], mine)
        np.testing.assert_allclose(y[row, :length], alone[0], atol=1e-6)
        for new, end, spec in zip(news, ends, model.signature.states, strict=True):
            np.testing.assert_allclose(new.take([row], spec.batch_axis), end, atol=1e-6)


def test_native_nodes_in_a_body_run_one_timestep_a_time_and_are_told_no_lengths():
    """As torch.jit.script writes a loop over LSTMCell."""
    model = load(Path(__file__).parents[1] / "parity/cases/torch_lstm_cell_loop", provider="cpu")
    assert model.self_test.ragged


def test_a_scan_against_time_starts_each_row_at_its_own_end(tmp_path: Path):
    built, weights = loops.scan(backwards=True)
    model = loaded(built, tmp_path)
    assert model.ragged is not None
    x = np.random.default_rng(5).normal(size=(3, 6, 3)).astype(np.float32)
    fresh = [np.zeros((3, *spec.shape), np.float32) for spec in model.signature.states]
    (y,), _ = model.ragged.run([x], fresh, LENGTHS)
    for row, length in enumerate(LENGTHS):
        alone, *_ = graphs.oracle(weights, x[row : row + 1, :length][:, ::-1], *np.zeros((2, 1, fresh[0].shape[-1])))
        np.testing.assert_allclose(y[row, :length], alone[0, ::-1], atol=1e-6)


def test_lengths_that_the_file_takes_already_are_used(tmp_path: Path):
    assert is_ragged(graphs.lstm_with_lengths(), tmp_path)


def test_a_graph_that_gives_only_the_last_output_takes_rows_of_one_length(tmp_path: Path):
    assert not is_ragged(graphs.native(last_only=True)[0], tmp_path)


def test_a_branch_that_only_zeros_lead_to_is_tried_too(tmp_path: Path):
    assert not is_ragged(branching(), tmp_path)


def test_a_graph_of_one_timestep_or_of_one_session_takes_none(tmp_path: Path):
    assert not is_ragged(graphs.one_step_cell()[0], tmp_path)
    assert not is_ragged(graphs.native(batch=1)[0], tmp_path)
