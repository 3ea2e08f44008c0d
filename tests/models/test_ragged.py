from pathlib import Path

import graphs
import loops
import numpy as np
import onnx
import pytest
import steps
from onnx import ModelProto

from recurra.models import Model, load
from recurra.models.lengths import with_lengths
from recurra.models.lift import lift
from recurra.models.over_time import over_time

LENGTHS = np.array([4, 6, 1])


def loaded(built: ModelProto, root: Path) -> Model:
    return load(graphs.write(built, root), provider="cpu")


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


def test_a_graph_of_one_timestep_or_of_one_session_takes_none(tmp_path: Path):
    assert not is_ragged(graphs.one_step_cell()[0], tmp_path)
    assert not is_ragged(graphs.native(batch=1)[0], tmp_path)
