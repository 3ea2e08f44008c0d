from pathlib import Path

import graphs
import loops
import numpy as np
import onnx
import pytest
from onnx import ModelProto

from recurra.models import load
from recurra.models.lift import lift
from recurra.models.ragged import with_lengths


def is_ragged(built: ModelProto, root: Path) -> bool:
    return load(graphs.write(built, root), provider="cpu").self_test.ragged


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_native_nodes_take_rows_of_several_lengths(tmp_path: Path, op: str, direction: str):
    built, (weights,) = graphs.native(op, direction=direction)
    assert is_ragged(built, tmp_path)
    lift(built)
    name = with_lengths(built)
    onnx.checker.check_model(built)
    x = np.random.default_rng(3).normal(size=(3, 6, 3)).astype(np.float32)
    states = {value.name: np.zeros((len(weights.w), 3, 8), np.float32) for value in built.graph.input[1:-1]}
    lengths = np.array([4, 6, 1], np.int32)
    y, h, *_ = graphs.run(built, {"x": x, **states, name: lengths})
    for row, length in enumerate(lengths):
        alone, end, _ = graphs.oracle(weights, x[row : row + 1, :length], np.zeros((1, 8)))
        np.testing.assert_allclose(y[row, :length, :8], alone[0], atol=1e-6)
        np.testing.assert_allclose(h[0, row], end[0], atol=1e-6)


def test_lengths_that_the_file_takes_already_are_used(tmp_path: Path):
    assert is_ragged(graphs.lstm_with_lengths(), tmp_path)


def test_a_graph_that_gives_only_the_last_output_takes_rows_of_one_length(tmp_path: Path):
    assert not is_ragged(graphs.native(last_only=True)[0], tmp_path)


def test_a_loop_knows_of_no_lengths(tmp_path: Path):
    assert not is_ragged(loops.keras()[0], tmp_path)


def test_a_graph_of_one_timestep_or_of_one_session_takes_none(tmp_path: Path):
    assert not is_ragged(graphs.one_step_cell()[0], tmp_path)
    assert not is_ragged(graphs.native(batch=1)[0], tmp_path)
