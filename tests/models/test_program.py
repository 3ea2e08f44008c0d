from pathlib import Path

import graphs
import numpy as np
import pytest
from onnx import helper

from recurra.models import ModelRefused, load

RANDOM = np.random.default_rng(11)


def test_a_graph_of_one_timestep_takes_chunks(tmp_path: Path):
    for time_of_one in (False, True):
        built, weights = graphs.one_step_cell(time_of_one=time_of_one)
        model = load(graphs.write(built, tmp_path, f"m{time_of_one}"), provider="cpu")
        (x_spec,), (y_spec,) = model.signature.inputs, model.signature.outputs
        assert (x_spec.shape, x_spec.has_time_axis) == ((3,), True)
        assert (y_spec.shape, y_spec.has_time_axis) == ((8,), True)
        x, h = RANDOM.normal(size=(4, 6, 3)).astype(np.float32), RANDOM.normal(size=(4, 8)).astype(np.float32)
        (y,), (end,) = model.program.run([x], [h])
        expected, last, _ = graphs.oracle(weights, x, h)
        np.testing.assert_allclose(y, expected, atol=1e-6)
        np.testing.assert_allclose(end, last, atol=1e-6)


@pytest.mark.parametrize("batch", [1, None])
def test_a_graph_of_one_session_is_served_one_at_a_time(tmp_path: Path, batch: int | None):
    built, weights = graphs.one_step_cell(batch=batch)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert model.max_batch == 1
    assert not model.self_test.batched
    assert model.signature.states[0].shape == (8,)
    x, h = RANDOM.normal(size=(1, 6, 3)).astype(np.float32), np.ones((1, 8), np.float32)
    (y,), (end,) = model.program.run([x], [h])
    assert y.shape == (1, 6, 8)
    np.testing.assert_allclose(y, graphs.oracle(weights, x, h)[0], atol=1e-6)
    assert end.shape == (1, 8)


def test_a_fixed_batch_of_one_in_a_sequence(tmp_path: Path):
    built, _ = graphs.native(batch=1, named=False)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert model.max_batch == 1
    assert model.signature.inputs[0].shape == (3,)


def test_sizes_without_names_are_tried_out(tmp_path: Path):
    for time_major in (False, True):
        built, (weights,) = graphs.native(named=False, time_major=time_major)
        model = load(graphs.write(built, tmp_path, f"m{time_major}"), provider="cpu")
        x = RANDOM.normal(size=(2, 5, 3)).astype(np.float32)
        (y,), _ = model.program.run([x], [np.zeros((1, 2, 8), np.float32)] * 2)
        np.testing.assert_allclose(y, graphs.oracle(weights, x, np.zeros((2, 8)))[0], atol=1e-6)


def test_axes_of_model_toml_win_over_names(tmp_path: Path):
    built, _ = graphs.native(named=False, time_major=True)
    dims = built.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_param, dims[1].dim_param = "batch", "time"  # a lie
    folder = graphs.write(built, tmp_path, toml="[inputs.x]\nbatch_axis = 1\ntime_axis = 0\n")
    model = load(folder, provider="cpu")
    assert model.max_batch == 256
    (port,) = model.program.layout.inputs
    assert (port.batch_axis, port.time_axis) == (1, 0)


def test_integers_that_index_a_table_are_bounded(tmp_path: Path):
    built, table, weights = graphs.embedding_gru(words=11)
    model = load(graphs.write(built, tmp_path), provider="cpu")
    (spec,) = model.signature.inputs
    assert (spec.dtype, spec.shape, spec.bounds) == (np.int64, (), (0, 10))
    tokens = RANDOM.integers(0, 11, (2, 5))
    (y,), _ = model.program.run([tokens], [np.zeros((1, 2, 8), np.float32)])
    np.testing.assert_allclose(y, graphs.oracle(weights, table[tokens], np.zeros((2, 8)))[0], atol=1e-6)


@pytest.mark.parametrize("dims", [(), (1,), ("batch", 1)])
def test_constants_are_fed_at_every_call(tmp_path: Path, dims: tuple[int | str, ...]):
    built = graphs.scaled_cell(dims=dims)
    folder = graphs.write(built, tmp_path, toml="[inputs.rate]\nconstant = 2\n")
    model = load(folder, provider="cpu")
    assert [spec.name for spec in model.signature.inputs] == ["x"]
    assert model.max_batch == 256
    weights = graphs.one_step_cell()[1]
    x, h = RANDOM.normal(size=(2, 4, 3)).astype(np.float32), np.zeros((2, 8), np.float32)
    (y,), _ = model.program.run([x], [h])
    np.testing.assert_allclose(y, graphs.oracle(weights, 2 * x, h)[0], atol=1e-6)


@pytest.mark.parametrize("value", ["0.5", "[1, 2]", "1e30"])
def test_a_constant_that_does_not_fit_is_refused(tmp_path: Path, value: str):
    folder = graphs.write(graphs.scaled_cell(), tmp_path, toml=f"[inputs.rate]\nconstant = {value}\n")
    with pytest.raises(ModelRefused, match=r"\[inputs.rate\] constant"):
        load(folder, provider="cpu")


def test_an_input_without_a_time_axis_is_held_over_the_chunk(tmp_path: Path):
    built = graphs.scaled_cell(dims=("batch", 1), kind=graphs.FLOAT)
    folder = graphs.write(built, tmp_path, toml="[inputs.rate]\ntime_axis = false\n")
    model = load(folder, provider="cpu")
    assert [(spec.name, spec.shape, spec.has_time_axis) for spec in model.signature.inputs] == [
        ("x", (3,), True),
        ("rate", (1,), False),
    ]
    x, h = RANDOM.normal(size=(2, 4, 3)).astype(np.float32), np.zeros((2, 8), np.float32)
    rate = np.array([[1], [3]], np.float32)
    (y,), _ = model.program.run([x, rate], [h])
    np.testing.assert_allclose(y, graphs.oracle(graphs.one_step_cell()[1], x * rate[:, None], h)[0], atol=1e-6)


def windows(x: graphs.Array, taps: int) -> graphs.Array:
    padded = np.pad(x, ((0, 0), (taps - 1, 0)))
    return np.asarray(sum(padded[:, each : each + x.shape[1]] for each in range(taps)))


def test_context_samples_are_put_in_front_along_time(tmp_path: Path):
    toml = (
        "[inputs.x]\ntime_axis = 1\ncontext = 2\n[[states]]\nname = 'h'\ninput = 'h_in'\noutput = 'h_out'\nfresh = 1\n"
    )
    model = load(graphs.write(graphs.moving_sum(taps=3), tmp_path, toml=toml), provider="cpu")
    assert [(state.name, state.shape, state.batch_axis) for state in model.signature.states] == [
        ("h", (1,), 0),
        ("x/context", (2,), 0),
    ]
    x = RANDOM.normal(size=(2, 9)).astype(np.float32)
    states = [np.ones((2, 1), np.float32), np.zeros((2, 2), np.float32)]
    parts = []
    for start, end in ((0, 4), (4, 5), (5, 9)):
        (y,), states = model.program.run([x[:, start:end]], states)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), windows(x, 3) + 1, atol=1e-6)
    np.testing.assert_array_equal(states[1], x[:, -2:])


def test_context_samples_are_put_in_front_along_the_last_axis(tmp_path: Path):
    toml = "[inputs.x]\ntime_axis = false\ncontext = 2\n"
    model = load(graphs.write(graphs.moving_sum(taps=3, stepwise=True), tmp_path, toml=toml), provider="cpu")
    assert model.signature.inputs[0].shape == (4,)
    assert [(state.name, state.shape) for state in model.signature.states] == [("h_in", (1,)), ("x/context", (2,))]
    x = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)
    (y,), (h, context) = model.program.run([x], [np.zeros((2, 1), np.float32), np.zeros((2, 2), np.float32)])
    h1 = x[:, 0, -1:]
    h2 = h1 / 2 + x[:, 1, -1:]
    expected = windows(x.reshape(2, 12), 3).reshape(2, 3, 4) + np.stack([0 * h1, h1, h2], axis=1)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_allclose(h, h2 / 2 + x[:, 2, -1:], atol=1e-6)
    np.testing.assert_array_equal(context, x[:, 2, -2:])


def test_chunk_sizes_are_told_and_tested(tmp_path: Path):
    toml = "[inputs.x]\nchunk_sizes = [8, 4]\n"
    model = load(graphs.write(graphs.lstm(), tmp_path, toml=toml), provider="cpu")
    assert model.signature.chunk_sizes == (4, 8)
    assert model.self_test.notes == ()
    toml = "[inputs.x]\nchunk_sizes = [5]\n"
    model = load(graphs.write(graphs.lstm(), tmp_path, toml=toml), provider="cpu")
    assert model.signature.chunk_sizes == (5,)
    assert model.signature.outputs[0].has_time_axis
    assert "no long run" in model.self_test.notes[0]


def test_a_time_axis_of_fixed_size_is_a_chunk_size(tmp_path: Path):
    built = graphs.lstm()
    built.graph.input[0].CopyFrom(graphs.info("x", ["batch", 6, 3]))
    model = load(graphs.write(built, tmp_path, toml="[inputs.x]\ntime_axis = 1\n"), provider="cpu")
    assert model.signature.chunk_sizes == (6,)


def test_a_missing_gpu_is_told(tmp_path: Path):
    folder = graphs.write(graphs.lstm(), tmp_path)
    with pytest.raises(ModelRefused, match="there is no provider 'tpu'; use one of auto, cuda, tensorrt, cpu"):
        load(folder, provider="tpu")
    model = load(folder, provider="auto")
    assert sum(model.nodes.values()) > 0
    if "CUDAExecutionProvider" not in model.providers:
        with pytest.raises(ModelRefused, match="no GPU can be used"):
            load(folder, provider="cuda")


@pytest.mark.parametrize("timed", [False, True])
def test_a_voice_detector_with_state_context_and_rate_is_served(tmp_path: Path, timed: bool):  # noqa: FBT001
    """A frame is one timestep of eight samples, or a chunk of eight timesteps of one sample, as the user likes."""
    built, weights = graphs.voice_detector()
    axis = "1" if timed else "false"
    toml = f"[inputs.audio]\ntime_axis = {axis}\ncontext = 4\nchunk_sizes = [8]\n[inputs.rate]\nconstant = 2\n"
    model = load(graphs.write(built, tmp_path, toml=toml), provider="cpu")
    (spec,) = model.signature.inputs
    assert spec.shape == (() if timed else (8,))
    assert model.signature.chunk_sizes == ((8,) if timed else ())
    assert [(state.name, state.shape, state.batch_axis) for state in model.signature.states] == [
        ("state", (2, 4), 1),
        ("audio/context", (4,), 0),
    ]
    assert model.max_batch == 256
    audio = RANDOM.normal(size=(3, 5, 8)).astype(np.float32)
    states = [np.zeros((2, 3, 4), np.float32), np.zeros((3, 4), np.float32)]
    if timed:
        parts = []
        for frame in range(5):
            (p,), states = model.program.run([audio[:, frame]], states)
            parts.append(p)
        found = np.stack(parts, axis=1)
    else:
        (found,), _ = model.program.run([audio], states)
    line = np.pad(audio.reshape(3, 40), ((0, 0), (4, 0)))
    frames = np.stack([line[:, start : start + 12].reshape(3, 4, 3).sum(2) for start in range(0, 40, 8)], axis=1)
    expected = graphs.oracle(weights, frames, np.zeros((3, 4)))[0].sum(2, keepdims=True) / 2
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_lengths_that_native_nodes_read_are_those_of_the_chunk(tmp_path: Path):
    model = load(graphs.write(graphs.lstm_with_lengths(), tmp_path), provider="cpu")
    assert [spec.name for spec in model.signature.inputs] == ["x"]
    assert model.self_test.chunked
    assert model.max_batch == 256


def test_a_table_indexed_through_a_cast_bounds_its_input(tmp_path: Path):
    """As Keras exports an Embedding."""
    built, _, _ = graphs.embedding_gru(words=5)
    built.graph.input[0].CopyFrom(graphs.info("tokens", ["batch", "time"], graphs.FLOAT))
    built.graph.node[0].input[1] = "indices"
    built.graph.node.insert(0, helper.make_node("Cast", ["tokens"], ["indices"], to=graphs.INT64))
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert model.signature.inputs[0].bounds == (0, 4)


def test_a_native_node_tells_which_axes_are_batch_and_time(tmp_path: Path):
    """No size has a name, and the time axis is fixed, as in a Keras model made for windows of six timesteps."""
    built = graphs.lstm()
    built.graph.input[0].CopyFrom(graphs.info("x", [None, 6, 3]))
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert (model.signature.inputs[0].shape, model.signature.chunk_sizes) == ((3,), (6,))
    tokens, _, _ = graphs.embedding_gru()
    tokens.graph.input[0].CopyFrom(graphs.info("tokens", [None, 6], graphs.INT64))
    model = load(graphs.write(tokens, tmp_path), provider="cpu")
    assert (model.signature.inputs[0].shape, model.signature.chunk_sizes) == ((), (6,))


def test_a_batch_axis_fixed_at_several_rows_is_refused(tmp_path: Path):
    with pytest.raises(ModelRefused, match=r"input 'x' is made for batches of 4 \(axis 0\)"):
        load(graphs.write(graphs.native(batch=4)[0], tmp_path), provider="cpu")


def test_a_convolution_over_time_is_served_with_its_context(tmp_path: Path):
    built = graphs.lstm()
    graph = built.graph
    kernel = RANDOM.normal(size=(3, 3, 3)).astype(np.float32)
    graph.initializer.append(graphs.const("kernel", kernel, np.float32))
    graph.node[0].input[0] = "convolved"
    for index, node in enumerate(
        [
            helper.make_node("Transpose", ["x"], ["channels"], perm=[0, 2, 1]),
            helper.make_node("Conv", ["channels", "kernel"], ["filtered"]),
            helper.make_node("Transpose", ["filtered"], ["convolved"], perm=[0, 2, 1]),
        ]
    ):
        graph.node.insert(index, node)
    with pytest.raises(ModelRefused, match="give it context = SAMPLES"):
        load(graphs.write(built, tmp_path), provider="cpu")
    model = load(graphs.write(built, tmp_path, toml="[inputs.x]\ncontext = 2\n"), provider="cpu")
    assert model.signature.states[-1].shape == (2, 3)
    assert model.self_test.chunked


def test_a_vector_without_a_time_axis_stands_beside_a_sequence(tmp_path: Path):
    built = graphs.lstm()
    graph = built.graph
    graph.input.append(graphs.info("speaker", ["batch", 3]))
    graph.initializer.append(graphs.const("middle", [1]))
    graph.node[0].input[0] = "both"
    graph.node.insert(0, helper.make_node("Unsqueeze", ["speaker", "middle"], ["spread"]))
    graph.node.insert(1, helper.make_node("Add", ["x", "spread"], ["both"]))
    model = load(graphs.write(built, tmp_path), provider="cpu")
    assert [(spec.name, spec.has_time_axis) for spec in model.signature.inputs] == [("x", True), ("speaker", False)]
    assert model.max_batch == 256
