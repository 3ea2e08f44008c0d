from pathlib import Path

import graphs
import loops
import numpy as np
import pytest
from onnx import helper

from recurra.models import ModelRefused, fidelity, load


def test_an_output_that_depends_on_the_whole_chunk_is_refused(tmp_path: Path):
    with pytest.raises(ModelRefused, match="depends on the whole chunk"):
        load(graphs.write(graphs.mean_over_time(), tmp_path), provider="cpu")


def test_no_far_fetched_reading_of_the_axes_saves_a_mean_over_time(tmp_path: Path):
    built = graphs.mean_over_time()
    for dim in built.graph.input[0].type.tensor_type.shape.dim[:2]:
        dim.ClearField("dim_param")
    with pytest.raises(ModelRefused, match="depends on the whole chunk"):
        load(graphs.write(built, tmp_path), provider="cpu")


def test_a_native_layer_on_a_reversed_input_is_flagged(tmp_path: Path):
    built = graphs.lstm()
    node = next(each for each in built.graph.node if each.op_type == "LSTM")
    place = list(built.graph.node).index(node)
    built.graph.node.insert(place, helper.make_node("ReverseSequence", [node.input[0], "ends"], ["x_back"]))
    built.graph.node.insert(place, helper.make_node("Expand", ["time", "rows"], ["ends"]))
    built.graph.node.insert(place, helper.make_node("Shape", [node.input[0]], ["rows"], start=1, end=2))
    built.graph.node.insert(place, helper.make_node("Shape", [node.input[0]], ["time"], end=1))
    node.input[0] = "x_back"
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert not model.self_test.chunked
    assert "against time" in model.self_test.notes[0]


def test_rows_that_change_each_other_are_served_one_at_a_time(tmp_path: Path):
    model = load(graphs.write(graphs.coupled_rows(), tmp_path), provider="cpu")
    assert model.self_test.chunked
    assert not model.self_test.batched
    assert model.self_test.batched_error > 1e-5
    assert model.max_batch == 1


def test_a_state_that_nothing_reads_is_refused(tmp_path: Path):
    with pytest.raises(ModelRefused, match="state 'h_in' has no influence on any output"):
        load(graphs.write(graphs.unread_state(), tmp_path), provider="cpu")


def test_a_state_that_changes_outputs_only_later_is_read(tmp_path: Path):
    """A delay line of two samples: the second state reaches the output through the first."""
    nodes = [
        helper.make_node("Identity", ["state_a"], ["y"]),
        helper.make_node("Identity", ["state_b"], ["state_a_next"]),
        helper.make_node("Identity", ["x"], ["state_b_next"]),
    ]
    inputs = [graphs.info(name, ["batch", 3]) for name in ("x", "state_a", "state_b")]
    outputs = [graphs.info(name, ["batch", 3]) for name in ("y", "state_a_next", "state_b_next")]
    model = load(graphs.write(graphs.model(nodes, inputs, outputs), tmp_path), provider="cpu")
    assert len(model.signature.states) == 2
    x = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    (y,), _ = model.program.run([x], [np.zeros((1, 3), np.float32)] * 2)
    np.testing.assert_array_equal(y[:, 2:], x[:, :2])


def test_noise_is_refused(tmp_path: Path):
    built = graphs.lstm_with(
        [
            helper.make_node("RandomNormalLike", ["mid"], ["noise"]),
            helper.make_node("Add", ["mid", "noise"], ["y"]),
        ]
    )
    with pytest.raises(ModelRefused, match="differ from one long run"):
        load(graphs.write(built, tmp_path), provider="cpu")


def test_a_graph_that_fails_at_every_size_is_refused_with_the_runtimes_words(tmp_path: Path):
    built = graphs.lstm()
    built.graph.input[0].CopyFrom(graphs.info("x", ["batch", "time", 5]))
    with pytest.raises(ModelRefused, match=r"INVALID_ARGUMENT|FAIL"):
        load(graphs.write(built, tmp_path), provider="cpu")


def test_a_declared_batch_axis_that_is_none_is_noticed(tmp_path: Path):
    built = graphs.lstm_with(
        [helper.make_node("Reshape", ["mid", "to_one"], ["y"])], [graphs.const("to_one", [1, -1, 8])]
    )
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert model.max_batch == 1


def test_a_lift_that_changes_the_model_is_refused(tmp_path: Path):
    """The file is held against another model's lift."""
    original, _ = graphs.native("GRU")
    other, _ = graphs.native("GRU", layers=2)
    program = load(graphs.write(other, tmp_path), provider="cpu").program
    with pytest.raises(ModelRefused, match=r"the model differs from the file by .* please report this"):
        fidelity.check(original.SerializeToString(), program)


def test_a_masked_timestep_is_part_of_the_proof(tmp_path: Path):
    """The output that is held over masked timesteps starts from the data, so it is lost between chunks."""
    built, _ = loops.keras(masked=True)
    loop = next(node for node in built.graph.node if node.op_type == "Loop")
    built.graph.node.insert(list(built.graph.node).index(loop), helper.make_node("Mul", ["rows_in", "zero"], ["held0"]))
    loop.input[list(loop.input).index("zeros", 2)] = "held0"
    built.graph.initializer.append(graphs.const("zero", 0.0, np.float32))
    built.graph.initializer.append(graphs.const("widen", np.ones((3, 8)), np.float32))
    built.graph.node.insert(0, helper.make_node("ReduceMax", ["x"], ["x_max"], axes=[1], keepdims=0))
    built.graph.node.insert(1, helper.make_node("MatMul", ["x_max", "widen"], ["rows_in"]))
    with pytest.raises(ModelRefused, match=r"differ from one long run.*starts 'held' from the data \(x\)"):
        load(graphs.write(built, tmp_path), provider="cpu")
