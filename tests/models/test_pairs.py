from pathlib import Path

import graphs
import numpy as np
import onnx
import pytest
from onnx import helper

from recurra.models import ModelRefused, load, stems


def states(model):
    return [(state.name, state.layer, state.shape, state.batch_axis) for state in model.signature.states]


def test_a_stacked_state_is_found_by_structure_though_another_output_gives_its_last_layer(tmp_path: Path):
    built, weights = graphs.gru_exposed(layers=3, names=("foo", "bar"), give_last=True)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert states(model) == [("foo", "foo", (3, 8), 1)]
    assert [spec.name for spec in model.signature.outputs] == ["y", "last"]
    x = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
    (y, last), (end,) = model.program.run([x], [np.zeros((3, 2, 8), np.float32)])
    expected = x
    for layer, each in enumerate(weights):
        expected, h, _ = graphs.oracle(each, expected, np.zeros((2, 8)))
        np.testing.assert_allclose(end[layer], h, atol=1e-6)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_array_equal(last[:, 0], end[2])


def test_one_layer_given_out_twice_is_told_apart_by_name(tmp_path: Path):
    built, _ = graphs.gru_exposed(give_last=True)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert model.program.layout.states[0].output == "hn"


def test_a_state_is_found_through_the_branches_of_an_if(tmp_path: Path):
    built, weights = graphs.branching_gru()
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert states(model)[0][0] == "memory_a"
    x = np.ones((1, 4, 3), np.float32)
    (y,), _ = model.program.run([x], [np.zeros((1, 1, 8), np.float32)])
    np.testing.assert_allclose(y, graphs.oracle(weights, x, np.zeros((1, 8)))[0], atol=1e-6)


def test_a_state_without_a_native_node_is_found_by_name(tmp_path: Path):
    model = load(graphs.write(graphs.one_step_cell()[0], tmp_path), provider="cpu")
    assert states(model) == [("h_in", "h_in", (8,), 0)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("h0", "hn"),
        ("c0", "cn"),
        ("h_in", "h_out"),
        ("state", "stateN"),
        ("prev_hidden", "next_hidden"),
        ("past_key", "present_key"),
        ("conv_cache", "conv_cache_out"),
        ("rnn1.hidden_in", "rnn1.hidden_out"),
        ("input_state", "output_state"),
        ("model/h_prev:0", "model/h_new:0"),
        ("memory_2_in", "memory_2_out"),
    ],
)
def test_names_that_pair(before: str, after: str):
    assert list(stems.matches([before, "x"], ["y", after])) == [(before, after)]


@pytest.mark.parametrize(
    ("before", "after"),
    [("audio_in", "audio_out"), ("input", "output"), ("h1_in", "h2_out"), ("x", "y"), ("input_1", "output_1")],
)
def test_names_that_do_not_pair(before: str, after: str):
    assert list(stems.matches([before, "z"], ["w", after])) == []


def test_a_weak_pair_is_refused_with_lines_that_work_once_pasted(tmp_path: Path):
    built, _ = graphs.one_step_cell(names=("foo", "bar"))
    built.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    built.graph.node[-1].CopyFrom(helper.make_node("Concat", ["bar", "bar"], ["y"], axis=1))
    built.graph.output[0].CopyFrom(graphs.info("y", ["batch", 16]))
    folder = graphs.write(built, tmp_path)
    with pytest.raises(ModelRefused, match="only equal shapes suggest one") as refused:
        load(folder, provider="cpu")
    (folder / "model.toml").write_text(str(refused.value).partition("\n\n")[2])
    model = load(folder, provider="cpu")
    assert states(model) == [("foo", "foo", (8,), 0)]


def test_pairs_of_model_toml_are_obeyed(tmp_path: Path):
    built, _ = graphs.one_step_cell(names=("foo", "bar"))
    toml = '[[states]]\nname = "cell/h"\ninput = "foo"\noutput = "bar"\nfresh = 0.5\nbatch_axis = 0\n'
    model = load(graphs.write(built, tmp_path, toml=toml), provider="cpu")
    assert states(model) == [("cell/h", "cell", (8,), 0)]
    np.testing.assert_array_equal(model.signature.states[0].fresh, np.full(8, 0.5, np.float32))


def test_a_fresh_state_may_come_from_a_file(tmp_path: Path):
    built, _ = graphs.one_step_cell()
    toml = '[[states]]\nname = "h"\nlayer = "cell"\ninput = "h_in"\noutput = "h_out"\nfresh = "h0.npy"\n'
    folder = graphs.write(built, tmp_path, toml=toml)
    with pytest.raises(ModelRefused, match=r"fresh = 'h0\.npy' cannot be read"):
        load(folder, provider="cpu")
    np.save(folder / "h0.npy", np.arange(3))
    with pytest.raises(ModelRefused, match=r"has shape \[3\], but needs \[8\]"):
        load(folder, provider="cpu")
    np.save(folder / "h0.npy", np.arange(8))
    model = load(folder, provider="cpu")
    np.testing.assert_array_equal(model.signature.states[0].fresh, np.arange(8, dtype=np.float32))
    assert model.signature.states[0].layer == "cell"


def test_a_fresh_state_outside_of_the_folder_is_refused(tmp_path: Path):
    toml = '[[states]]\nname = "h"\ninput = "h_in"\noutput = "h_out"\nfresh = "../h0.npy"\n'
    np.save(tmp_path / "h0.npy", np.zeros(8))
    with pytest.raises(ModelRefused, match="outside of the model's folder"):
        load(graphs.write(graphs.one_step_cell()[0], tmp_path, toml=toml), provider="cpu")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("nope", "h_out"), "no free input 'nope'; it has h_in, x"),
        (("h_in", "nope"), "no free output 'nope'; it has h_out, y"),
        (("x", "h_out"), "goes in as 'x'"),
    ],
)
def test_a_wrong_pair_is_refused(tmp_path: Path, pair: tuple[str, str], message: str):
    toml = f'[[states]]\nname = "h"\ninput = "{pair[0]}"\noutput = "{pair[1]}"\n'
    with pytest.raises(ModelRefused, match=message):
        load(graphs.write(graphs.one_step_cell()[0], tmp_path, toml=toml), provider="cpu")


def test_a_model_without_a_state_is_refused(tmp_path: Path):
    node = helper.make_node("Tanh", ["x"], ["y"])
    built = graphs.model([node], [graphs.info("x", ["n", 3])], [graphs.info("y", ["n", 3])])
    with pytest.raises(ModelRefused, match=r"no state found: .* list the pairs in model.toml"):
        load(graphs.write(built, tmp_path), provider="cpu")


def test_a_loop_that_may_hold_the_state_is_named(tmp_path: Path):
    body = helper.make_graph(
        [
            helper.make_node("Add", ["carried", "x"], ["next"]),
            helper.make_node("Identity", ["going"], ["still"]),
        ],
        "body",
        [
            graphs.info("step", [], graphs.INT64),
            graphs.info("going", [], onnx.TensorProto.BOOL),
            graphs.info("carried", ["n", 3]),
        ],
        [graphs.info("still", [], onnx.TensorProto.BOOL), graphs.info("next", ["n", 3])],
    )
    nodes = [
        helper.make_node("Loop", ["count", "", "x"], ["last"], body=body, name="time_loop"),
        helper.make_node("Concat", ["last", "last"], ["y"], axis=1),
    ]
    built = graphs.model(nodes, [graphs.info("x", ["n", 3])], [graphs.info("y", ["n", 6])], [graphs.const("count", 2)])
    with pytest.raises(ModelRefused, match=r"Loop node 'time_loop' may hold one"):
        load(graphs.write(built, tmp_path), provider="cpu")


def test_data_of_two_moments_is_no_state_beside_a_native_node():
    names = ["last_price", "x"], ["next_price", "y"]
    assert list(stems.matches(*names)) == [("last_price", "next_price")]
    assert list(stems.matches(*names, strict=True)) == []
