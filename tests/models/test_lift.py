from pathlib import Path

import graphs
import loops
import numpy as np
import onnx
import pytest
from onnx import helper

from recurra.models import Model, ModelRefused, layers, load
from recurra.models.config import StateConfig
from recurra.models.lift import lift
from recurra.models.pairs import explicit


def fresh(model: Model, rows: int) -> list[graphs.Array]:
    return [np.stack([state.fresh] * rows, axis=state.batch_axis) for state in model.signature.states]


def chunked(model: Model, x: graphs.Array, sizes: tuple[int, ...]) -> tuple[graphs.Array, list[graphs.Array]]:
    states, outputs, start = fresh(model, len(x)), [], 0
    for size in sizes:
        (y,), states = model.program.run([x[:, start : start + size]], states)
        outputs.append(y)
        start += size
    return np.concatenate(outputs, axis=1), states


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("initial", ["missing", "zeros", "learned"])
@pytest.mark.parametrize("time_major", [False, True])
def test_chunks_of_a_lifted_model_are_one_long_run(tmp_path: Path, op: str, initial: str, time_major: bool):  # noqa: FBT001
    built, weights = graphs.native(op, layers=2, initial=initial, time_major=time_major)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    kinds = "hc" if op == "LSTM" else "h"
    assert [state.name for state in model.signature.states] == [
        f"{op.lower()}_{layer}/{kind}" for layer in (1, 2) for kind in kinds
    ]
    assert model.self_test.chunked
    assert model.self_test.batched
    assert model.max_batch == 256
    x = np.random.default_rng(3).normal(size=(3, 8, 3)).astype(np.float32)
    y, states = chunked(model, x, (4, 1, 3))
    expected, ends = x, []
    for layer, each in enumerate(weights, start=1):
        start = next(state.fresh for state in model.signature.states if state.name == f"{op.lower()}_{layer}/h")
        assert start.any() == (initial == "learned")
        expected, h, c = graphs.oracle(each, expected, np.repeat(start, 3, axis=0))
        ends += [h, c] if op == "LSTM" else [h]
    np.testing.assert_allclose(y, expected, atol=2e-6)
    for state, end in zip(states, ends, strict=True):
        np.testing.assert_allclose(state[0], end, atol=2e-6)
        assert state.flags.c_contiguous


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_a_layer_that_runs_against_time_is_lifted_and_flagged(tmp_path: Path, direction: str):
    built, (weights,) = graphs.native("GRU", direction=direction)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert not model.self_test.chunked
    assert "Keras" in model.self_test.notes[0]
    assert model.self_test.batched
    x = np.random.default_rng(3).normal(size=(2, 7, 3)).astype(np.float32)
    y, states = chunked(model, x, (4, 3))
    # Keras' semantics: the reverse direction sees each chunk alone, and carries its state from chunk to chunk.
    last = 1 if direction == "bidirectional" else 0
    first, h, _ = graphs.oracle(weights, x[:, 3::-1], np.zeros((2, 8)), direction=last)
    second, h, _ = graphs.oracle(weights, x[:, :3:-1], h, direction=last)
    np.testing.assert_allclose(y[..., -8:], np.concatenate([first[:, ::-1], second[:, ::-1]], axis=1), atol=1e-6)
    np.testing.assert_allclose(states[0][last], h, atol=1e-6)


def test_a_frozen_stateful_state_is_refused(tmp_path: Path):
    built, _ = graphs.native(initial="frozen")
    with pytest.raises(ModelRefused, match="stateful=False"):
        load(graphs.write(built, tmp_path), provider="cpu")


def test_the_last_output_alone_has_no_time_axis(tmp_path: Path):
    built, (weights,) = graphs.native(last_only=True)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert not model.signature.outputs[0].has_time_axis
    x = np.random.default_rng(3).normal(size=(2, 5, 3)).astype(np.float32)
    (y,), _ = model.program.run([x], fresh(model, 2))
    np.testing.assert_allclose(y, graphs.oracle(weights, x, np.zeros((2, 8)))[1], atol=1e-6)


def test_a_state_that_is_an_output_already_stays_one(tmp_path: Path):
    built, _ = graphs.native("GRU")
    built.graph.node[1].output.append("final")
    built.graph.output.append(graphs.info("final", [1, "batch", 8]))
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert [spec.name for spec in model.signature.outputs] == ["y", "final"]
    (_, final), (state,) = model.program.run([np.ones((2, 3, 3), np.float32)], fresh(model, 2))
    np.testing.assert_array_equal(final[:, 0], state[0])


def test_some_states_may_be_exposed_and_others_lifted(tmp_path: Path):
    """A GRU with its state exposed and a second one on top that keeps its own."""
    built, _ = graphs.gru_exposed()
    top = graphs.Weights.draw("GRU", 8, 8, seed=7)
    graph = built.graph
    graph.initializer.extend(top.initializers("top"))
    graph.node[-1].output[0] = "middle"
    graph.node.extend(
        [
            helper.make_node("Transpose", ["middle"], ["middle_time"], perm=[1, 0, 2]),
            helper.make_node(
                "GRU", ["middle_time", "top_w", "top_r", "top_b"], ["top_y"], hidden_size=8, name="/top/GRU"
            ),
            helper.make_node("Squeeze", ["top_y", "one"], ["top_out"]),
            helper.make_node("Transpose", ["top_out"], ["y"], perm=[1, 0, 2]),
        ]
    )
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert [(state.name, state.layer) for state in model.signature.states] == [("h0", "gru_1"), ("top/h", "top")]


def test_an_initial_state_computed_from_the_data_is_refused(tmp_path: Path):
    built, _ = graphs.native("GRU", features=8)
    graph = built.graph
    graph.node.insert(1, helper.make_node("ReduceMean", ["x_time"], ["start"], axes=[0], keepdims=1))
    graph.node[2].input.extend(["", "start"])
    with pytest.raises(ModelRefused, match=r"GRU node 'l0_y' starts from a state that is computed from the data \(x\)"):
        load(graphs.write(built, tmp_path), provider="cpu")


def test_an_initial_state_without_a_final_one_is_refused(tmp_path: Path):
    built, _ = graphs.gru_exposed()
    gru = next(node for node in built.graph.node if node.op_type == "GRU")
    gru.input[5] = "h0"
    del built.graph.output[1]
    with pytest.raises(ModelRefused, match="starts from the input 'h0', but its final state is no output"):
        load(graphs.write(built, tmp_path), provider="cpu")


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("initial", ["missing", "learned"])
def test_a_node_with_the_batch_first_is_turned(tmp_path: Path, op: str, initial: str):
    """The runtime has no layout=1."""
    built, (weights,) = graphs.native(op, initial=initial, attributes={"layout": 1})
    graph = built.graph
    node = next(each for each in graph.node if each.op_type == op)
    node.input[0] = "x"
    if initial == "learned":  # (1, D, H), spread to (N, D, H)
        expand = next(each for each in graph.node if each.op_type == "Expand")
        concat = next(each for each in graph.node if each.op_type == "Concat")
        concat.input[:] = [concat.input[1], concat.input[0], concat.input[2]]
        graph.node.append(helper.make_node("Transpose", [node.input[5]], ["turned"], perm=[1, 0, 2]))
        node.input[5] = expand.output[0]
    place = list(graph.node).index(node)
    del graph.node[place + 1 :]
    graph.node.append(helper.make_node("Squeeze", [node.output[0], "axis2"], ["y"]))
    graph.initializer.append(graphs.const("axis2", [2]))
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert all((state.shape, state.batch_axis) == ((1, 8), 1) for state in model.signature.states)
    x = np.random.default_rng(3).normal(size=(3, 8, 3)).astype(np.float32)
    y, _ = chunked(model, x, (4, 1, 3))
    start = np.repeat(model.signature.states[0].fresh, 3, axis=0)
    np.testing.assert_allclose(y, graphs.oracle(weights, x, start)[0], atol=1e-6)


def test_a_layer_in_both_branches_of_an_if_has_one_state(tmp_path: Path):
    built, weights = graphs.branching_gru(exposed=False, flag=None)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert [(state.name, state.shape) for state in model.signature.states] == [("agru/h", (1, 8))]
    x = np.random.default_rng(3).normal(size=(2, 8, 3)).astype(np.float32)
    y, _ = chunked(model, x, (4, 1, 3))
    np.testing.assert_allclose(y, graphs.oracle(weights, x, np.zeros((2, 8)))[0], atol=1e-6)


@pytest.mark.parametrize("flag", [True, False])
def test_a_branch_that_is_never_taken_is_cut_off(tmp_path: Path, flag: bool):  # noqa: FBT001
    """One branch has a GRU, the other has none; which is taken stands in the file."""
    built, weights = graphs.branching_gru(exposed=False, other="mean", flag=flag)
    if not flag:
        with pytest.raises(ModelRefused, match="no state found"):
            load(graphs.write(built, tmp_path), provider="cpu")
        return
    model = load(graphs.write(built, tmp_path), provider="cpu")
    x = np.random.default_rng(3).normal(size=(2, 8, 3)).astype(np.float32)
    y, _ = chunked(model, x, (4, 1, 3))
    np.testing.assert_allclose(y, graphs.oracle(weights, x, np.zeros((2, 8)))[0], atol=1e-6)


def test_a_branch_without_the_layer_hands_its_state_on(tmp_path: Path):
    """The GRU runs only for chunks of more than one timestep."""
    built, weights = graphs.branching_gru(exposed=False, other="mean", flag=None)
    pairs, _ = lift(built)
    assert [(pair.name, pair.input, pair.output) for pair in pairs] == [("agru/h", "agru/h", "agru/h/next")]
    onnx.checker.check_model(built)
    x = np.random.default_rng(3).normal(size=(2, 5, 3)).astype(np.float32)
    state = np.random.default_rng(4).normal(size=(1, 2, 8)).astype(np.float32)
    y, after = graphs.run(built, {"x": x, "agru/h": state}, ["y", "agru/h/next"])
    expected, end, _ = graphs.oracle(weights, x, state[0])
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_allclose(after[0], end, atol=1e-6)
    _, after = graphs.run(built, {"x": x[:, :1], "agru/h": state}, ["y", "agru/h/next"])
    np.testing.assert_array_equal(after, state)


def test_a_layer_in_the_body_of_a_loop_is_refused(tmp_path: Path):
    built, _ = loops.scan(op="RNN")
    body = next(node for node in built.graph.node if node.op_type == "Scan").attribute[0].g
    assert body.name == "body"
    weights = graphs.Weights.draw("GRU", 8, 8)
    built.graph.initializer.extend([*weights.initializers("inner"), graphs.const("axis0", [0])])
    body.node[-1].CopyFrom(helper.make_node("Unsqueeze", ["h_new", "axis0"], ["inner_x"]))
    inner = ["inner_x", "inner_w", "inner_r", "inner_b"]
    body.node.append(
        helper.make_node("GRU", inner, ["", "inner_h"], name="inner", hidden_size=8, linear_before_reset=1)
    )
    body.node.append(helper.make_node("Squeeze", ["inner_h", "axis0"], ["out"]))
    with pytest.raises(ModelRefused, match=r"GRU node 'inner' lies in the body of a Loop or Scan .*carry its state"):
        load(graphs.write(built, tmp_path), provider="cpu")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["/lstm/LSTM", "/lstm/LSTM_1"], ["lstm", "lstm_1"]),
        (["/encoder/rnn/LSTM", "/decoder/rnn/LSTM"], ["rnn", "rnn_1"]),
        (["StatefulPartitionedCall/sequential_1/lstm_1/PartitionedCall/LSTM__12"], ["lstm_1"]),
        (["", ""], ["lstm_1", "lstm_2"]),
        (["LSTM_7", "lstm_2"], ["lstm_1", "lstm_2"]),
        (["a/b", "a/b", "b_1"], ["b", "b_2", "b_1"]),
    ],
)
def test_layers_are_named_as_the_file_names_them(names: list[str], expected: list[str]):
    assert layers.names([helper.make_node("LSTM", [], [], name=name) for name in names]) == expected


def test_zeros_in_the_branch_for_an_empty_state_are_no_state_of_their_own():
    """As torch scripts a step: `if len(state)`, one branch starts from it, the other, for no state yet, from zeros."""
    built, _ = graphs.branching_gru(other="fresh", flag=None)
    known = explicit(built.graph, [StateConfig("h", "memory_a", "memory_b")])
    assert lift(built, known) == ([], [])


def test_an_initial_state_behind_a_convolution_that_needs_many_samples_is_evaluated():
    """The state's size follows the shape of what a reflecting Pad gives, which refuses short chunks."""
    nodes = [
        helper.make_node("Pad", ["x", "wide"], ["padded"], mode="reflect"),
        helper.make_node("Transpose", ["padded"], ["p_time"], perm=[1, 0, 2]),
        helper.make_node("Shape", ["p_time"], ["rows"], start=1, end=2),
        helper.make_node("Concat", ["one", "rows", "eight"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("LSTM", ["p_time", "l_w", "l_r", "l_b", "", "zeros", "zeros"], ["y"], hidden_size=8),
    ]
    stored = [graphs.const("wide", [0, 20, 0, 0, 20, 0]), graphs.const("one", [1]), graphs.const("eight", [8])]
    stored += graphs.Weights.draw("LSTM", 3, 8).initializers("l")
    built = graphs.model(nodes, [graphs.info("x", ["batch", "time", 3])], [graphs.info("y", None)], stored)
    found, _ = lift(built)
    assert [(pair.name, pair.fresh.shape) for pair in found] == [("lstm_1/h", (1, 8)), ("lstm_1/c", (1, 8))]


def test_an_evaluation_does_not_make_inputs_that_fill_the_memory():
    """Four free sizes, as of images, and a graph that fails on small ones."""
    nodes = [
        helper.make_node("Pad", ["x", "wide"], ["padded"], mode="reflect"),
        helper.make_node("Shape", ["padded"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["one", "rows", "eight"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Transpose", ["x_rows"], ["x_time"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["x_time", "l_w", "l_r", "l_b", "", "zeros", "zeros"], ["y"], hidden_size=8),
    ]
    sizes = {"wide": [0, 0, 20, 0, 0, 0, 20, 0], "one": [1], "eight": [8]}
    stored = [*(graphs.const(*each) for each in sizes.items()), *graphs.Weights.draw("LSTM", 3, 8).initializers("l")]
    inputs = [graphs.info("x", ["batch", "time", "height", "width"]), graphs.info("x_rows", ["batch", "time", 3])]
    with pytest.raises(ModelRefused, match="cannot be evaluated"):
        lift(graphs.model(nodes, inputs, [graphs.info("y", None)], stored))
