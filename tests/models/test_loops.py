from pathlib import Path

import graphs
import loops
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from test_lift import chunked, fresh

from recurra.models import ModelRefused, load
from recurra.models.hoist import hoist
from recurra.models.lift import lift


@pytest.mark.parametrize("op", ["RNN", "LSTM"])
@pytest.mark.parametrize("initial", ["zeros", "learned", "row"])
@pytest.mark.parametrize("accumulator", loops.ACCUMULATORS)
def test_the_state_of_a_keras_loop_is_lifted(tmp_path: Path, op: str, initial: str, accumulator: str):
    built, weights = loops.keras(op, initial=initial, accumulator=accumulator)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    names = ["rnn_7/state"] if op == "RNN" else ["rnn_7/state_1", "rnn_7/state_2"]
    assert [(state.name, state.layer, state.shape, state.batch_axis) for state in model.signature.states] == [
        (name, "rnn_7", (8,), 0) for name in names
    ]
    assert (model.self_test.chunked, model.self_test.batched, model.self_test.notes) == (True, True, ())
    start = model.signature.states[0].fresh
    assert start.any() == (initial != "zeros")
    x = np.random.default_rng(3).normal(size=(3, 8, 3)).astype(np.float32)
    y, states = chunked(model, x, (4, 1, 3))
    expected, *ends = graphs.oracle(weights, x, np.stack([start] * 3), np.stack([start] * 3))
    np.testing.assert_allclose(y, expected, atol=1e-6)
    for state, end in zip(states, ends, strict=False):
        np.testing.assert_allclose(state, end, atol=1e-6)


def test_the_state_of_a_scan_is_lifted(tmp_path: Path):
    for op in ("RNN", "LSTM"):
        built, weights = loops.scan(op=op)
        model = load(graphs.write(built, tmp_path, op), provider="cpu")
        assert model.signature.states[0].name == ("scan_1/state" if op == "RNN" else "scan_1/state_1")
        x = np.random.default_rng(3).normal(size=(3, 8, 3)).astype(np.float32)
        y, _ = chunked(model, x, (4, 1, 3))
        np.testing.assert_allclose(y, graphs.oracle(weights, x, np.zeros((3, 8)))[0], atol=1e-6)


def test_sizes_without_names_do(tmp_path: Path):
    built, weights = loops.keras("LSTM", named=False)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert model.max_batch == 256
    x = np.random.default_rng(3).normal(size=(2, 5, 3)).astype(np.float32)
    y, _ = chunked(model, x, (4, 1))
    np.testing.assert_allclose(y, graphs.oracle(weights, x, np.zeros((2, 8)))[0], atol=1e-6)


def test_the_last_output_of_a_loop_has_no_time_axis(tmp_path: Path):
    built, weights = loops.keras(last_only=True)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    x = np.random.default_rng(3).normal(size=(2, 5, 3)).astype(np.float32)
    (y,), _ = model.program.run([x], fresh(model, 2))
    np.testing.assert_allclose(y, graphs.oracle(weights, x, np.zeros((2, 8)))[1], atol=1e-6)


def test_the_output_that_masking_holds_is_a_state_too(tmp_path: Path):
    built, weights = loops.keras(masked=True)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert [state.name for state in model.signature.states] == ["rnn_7/state_1", "rnn_7/state_2"]
    x = np.random.default_rng(3).normal(size=(3, 8, 3)).astype(np.float32)
    x[0, 4] = x[1, 3:6] = x[2, 0] = 0
    y, states = chunked(model, x, (4, 1, 3))
    expected, *ends = loops.masked_oracle(weights, x, np.zeros((3, 8)), np.zeros((3, 8)))
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_allclose(states, ends, atol=1e-6)


def test_a_held_output_that_shows_only_in_masked_chunks_is_kept(tmp_path: Path):
    built, _ = loops.keras(masked=True, last_only=True)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert len(model.signature.states) == 2
    x = np.random.default_rng(3).normal(size=(1, 4, 3)).astype(np.float32)
    (before,), states = model.program.run([x], fresh(model, 1))
    (after,), _ = model.program.run([np.zeros_like(x)], states)
    np.testing.assert_array_equal(after, before)


def test_what_a_loop_carries_unread_is_no_state(tmp_path: Path):
    """As the last output of a layer that gives zeros for masked timesteps."""
    built, _ = loops.keras(masked=True)
    body = next(node for node in built.graph.node if node.op_type == "Loop").attribute[0].g
    where = next(node for node in body.node if "held" in node.input)
    where.input[2] = "nothing"
    body.initializer.append(numpy_helper.from_array(np.zeros((1, 8), np.float32), "nothing"))
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert len(model.signature.states) == 1


@pytest.mark.parametrize("form", ["loop", "scan"])
def test_a_loop_against_time_is_lifted_and_flagged(tmp_path: Path, form: str):
    built, weights = loops.keras(reverse=True) if form == "loop" else loops.scan(op="RNN", backwards=True)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert not model.self_test.chunked
    assert "against time" in model.self_test.notes[0]
    x = np.random.default_rng(3).normal(size=(2, 7, 3)).astype(np.float32)
    _, states = chunked(model, x, (4, 3))
    _, h, _ = graphs.oracle(weights, x[:, 3::-1], np.zeros((2, 8)))
    _, h, _ = graphs.oracle(weights, x[:, :3:-1], h)
    np.testing.assert_allclose(states[0], h, atol=1e-6)


def test_weights_that_a_loop_carries_are_read_from_outside():
    for accumulator in loops.ACCUMULATORS:
        built, weights = loops.keras("LSTM", accumulator=accumulator)
        before = onnx.ModelProto.FromString(built.SerializeToString())
        assert hoist(built.graph) == 3
        loop = next(node for node in built.graph.node if node.op_type == "Loop")
        assert len(loop.input) == 2 + 3 + (accumulator != "scan")
        onnx.checker.check_model(built)
        x = np.random.default_rng(3).normal(size=(2, 5, 3)).astype(np.float32)
        old, new = (graphs.run(each, {"x": x})[0] for each in (before, built))
        np.testing.assert_array_equal(old, new)
        np.testing.assert_allclose(new, graphs.oracle(weights, x, np.zeros((2, 8)))[0], atol=1e-6)
        assert hoist(built.graph) == 0


def test_a_batch_of_a_loop_is_bit_for_bit_its_rows_alone(tmp_path: Path):
    built, _ = loops.keras("LSTM", hidden=32)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    x = np.random.default_rng(3).normal(size=(5, 4, 3)).astype(np.float32)
    (together,), _ = model.program.run([x], fresh(model, 5))
    for row in range(5):
        (alone,), _ = model.program.run([x[row : row + 1]], fresh(model, 1))
        np.testing.assert_array_equal(together[row], alone[0])


def test_a_frozen_state_of_a_loop_is_refused(tmp_path: Path):
    built, _ = loops.keras(initial="frozen")
    built.graph.input[0].CopyFrom(graphs.info("x", [2, "time", 3]))
    with pytest.raises(ModelRefused, match=r"Loop node 'model/rnn_7/while_loop'.*stateful=False"):
        load(graphs.write(built, tmp_path), provider="cpu")


def test_a_loop_in_a_branch_is_lifted_and_the_other_branch_hands_its_state_on():
    built, weights = loops.keras()
    graph = built.graph
    place, loop = next((index, node) for index, node in enumerate(graph.node) if node.op_type == "Loop")
    inside = onnx.NodeProto()
    inside.CopyFrom(loop)
    inside.output[:] = [f"in_{name}" for name in loop.output]
    then = helper.make_graph([inside], "then", [], [graphs.info("in_y_time", None)])
    tiled = helper.make_node("Expand", ["none", "y_shape"], ["else_y"])
    shape = helper.make_node("Concat", ["one_more", "state_shape"], ["y_shape"], axis=0)
    otherwise = helper.make_graph([shape, tiled], "else", [], [graphs.info("else_y", None)])
    graph.initializer.extend([graphs.const("none", 0.0, np.float32), graphs.const("one_more", [1])])
    graph.initializer.append(graphs.const("one_step", 1))
    del graph.node[place]
    graph.node.insert(place, helper.make_node("Greater", ["timesteps", "one_step"], ["several"]))
    choice = helper.make_node("If", ["several"], ["y_time"], then_branch=then, else_branch=otherwise)
    graph.node.insert(place + 1, choice)
    hoist(graph)
    (pair,), doubts = lift(built)
    assert (pair.name, pair.batch_axis, doubts) == ("rnn_7/state", 0, [])
    x = np.random.default_rng(3).normal(size=(2, 5, 3)).astype(np.float32)
    state = np.random.default_rng(4).normal(size=(2, 8)).astype(np.float32)
    y, after = graphs.run(built, {"x": x, pair.input: state}, ["y", pair.output])
    expected, end, _ = graphs.oracle(weights, x, state)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_allclose(after, end, atol=1e-6)
    _, after = graphs.run(built, {"x": x[:, :1], pair.input: state}, ["y", pair.output])
    np.testing.assert_array_equal(after, state)
