# ruff: noqa: E402 - nothing below can be imported without the frameworks
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

for framework in ("keras", "tensorflow", "tf2onnx", "tf_keras"):
    pytest.importorskip(framework, reason="the frameworks are in the environment of `make export-setup`")

import h5py
import tf_keras
from tf_keras.src.saving.legacy.hdf5_format import _convert_rnn_weights

from recurra.models import ModelRefused, load
from recurra.models.export.backend import keras, tf
from recurra.models.export.cli import export as command
from recurra.models.export.keras import export
from recurra.models.repository import Model
from tests.parity import keras_2
from tests.parity.case import Array
from tests.parity.keras_models import LeakyCell, randomised

layers = keras.layers

# Keras 3.15 turns TensorFlow's tensors into arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(autouse=True)
def _names_from_the_start() -> None:
    keras.backend.clear_session()


def behind(*stack: Any, shape: tuple[int | None, ...] = (None, 3), **options: Any) -> Any:
    return randomised(keras.Sequential([keras.Input(shape, name="x", **options), *stack]), "weights")


def lstm() -> Any:
    return behind(layers.LSTM(4, return_sequences=True, name="memory"))


def answer(model: Model, x: Array) -> Array:
    states = [np.stack([spec.fresh] * len(x), axis=spec.batch_axis) for spec in model.signature.states]
    return model.program.run([x], states)[0][0]


def x(timesteps: int = 5) -> Array:
    return np.random.default_rng(4).normal(size=(2, timesteps, 3)).astype(np.float32)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_file_is_exported_by_the_command(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]):
    model = lstm()
    model.save(tmp_path / name)
    assert command(["keras", str(tmp_path / name), str(tmp_path / "out")]) == 0
    assert "states memory/h, memory/c" in capsys.readouterr().out
    served = load(tmp_path / "out", provider="cpu")
    assert [state.layer for state in served.signature.states] == ["memory", "memory"]
    assert [spec.name for spec in (*served.signature.inputs, *served.signature.outputs)] == ["x", "memory"]
    np.testing.assert_allclose(answer(served, x()), model(x()), atol=1e-6)


def test_the_model_is_left_as_it_was(tmp_path: Path):
    model = behind(layers.GRU(4, stateful=True, unroll=True), shape=(5, 3), batch_size=2)
    before = model.predict(x(), verbose=0)
    kept = dict(vars(model.layers[0]))
    export(model, tmp_path / "out")
    assert vars(model.layers[0]) == kept
    model.layers[0].reset_state()
    np.testing.assert_array_equal(model.predict(x(), verbose=0), before)


def test_a_fixed_time_axis_is_freed_where_the_model_can_do_without(tmp_path: Path):
    sequence = keras.Input((5, 3))
    memory = layers.LSTM(4, return_sequences=True)(sequence)
    free = export(keras.Model(sequence, layers.Dense(2)(memory)), tmp_path / "free")
    assert free.signature.chunk_sizes == ()
    fixed = export(keras.Model(sequence, layers.Dense(2)(layers.Flatten()(memory))), tmp_path / "fixed")
    assert fixed.signature.chunk_sizes == (5,)


@keras.saving.register_keras_serializable(package="tests")
class Counting(layers.Layer):
    """A cell whose fresh state is no zero: it shows how many timesteps are left."""

    state_size = output_size = 2

    def build(self, shape: Any) -> None:
        self.speed = self.add_weight(shape=(shape[-1], 2), name="speed")

    def call(self, inputs: Any, states: Any) -> Any:
        left = states[0] - keras.ops.abs(inputs @ self.speed)
        return left, [left]

    def get_initial_state(self, batch_size: Any = None) -> Any:
        return [keras.ops.broadcast_to(keras.ops.array([[7.0, 9.0]]), (batch_size, 2))]


def test_a_fresh_state_that_is_not_zero_goes_along(tmp_path: Path):
    model = behind(layers.RNN(Counting(), return_sequences=True, name="left"))
    served = export(model, tmp_path / "out")
    np.testing.assert_array_equal(served.signature.states[0].fresh, [7, 9])
    assert (tmp_path / "out" / "left_state_1.npy").exists()
    np.testing.assert_allclose(answer(load(tmp_path / "out", provider="cpu"), x()), model(x()), atol=1e-6)


def test_a_layer_that_is_called_twice_has_a_state_for_each_call(tmp_path: Path):
    shared, inputs = layers.LSTM(3, return_sequences=True, name="shared"), keras.Input((None, 3))
    model = randomised(keras.Model(inputs, shared(shared(inputs))), "shared")
    served = export(model, tmp_path / "out")
    names = [state.name for state in served.signature.states]
    assert names == ["shared/h", "shared/c", "shared/call_2/h", "shared/call_2/c"]
    assert served.self_test.chunked
    np.testing.assert_allclose(answer(served, x()), model(x()), atol=1e-6)


def test_layers_of_one_name_are_told_apart_by_their_models(tmp_path: Path):
    inner = keras.Sequential([keras.Input((None, 3)), layers.GRU(3, return_sequences=True, name="a")], name="inner")
    model = behind(inner, layers.GRU(3, return_sequences=True, name="a"))
    assert [state.layer for state in export(model, tmp_path / "out").signature.states] == ["inner/a", "a"]


def test_layers_that_are_nodes_of_onnx_become_these(tmp_path: Path):
    kinds = (layers.SimpleRNN, layers.GRU, layers.LSTM)
    stack = [kind(4, return_sequences=True, recurrent_dropout=0.1) for kind in kinds]
    served = export(behind(*stack, layers.GRU(4)), tmp_path / "out")
    types = [node.op_type for node in onnx.load(tmp_path / "out" / "1" / "model.onnx").graph.node]
    assert [each for each in types if each in ("RNN", "GRU", "LSTM", "Loop")] == ["RNN", "GRU", "LSTM", "GRU"]
    assert served.self_test.ragged


def test_what_a_layer_learned_of_the_data_goes_along(tmp_path: Path):
    """Normalization holds it beside its variables."""
    scale = layers.Normalization()
    scale.adapt(np.random.default_rng(1).normal(3, 2, size=(10, 5, 3)))
    model = keras.Sequential([keras.Input((None, 3)), scale, layers.LSTM(4)])
    np.testing.assert_allclose(answer(export(model, tmp_path / "out"), x()), model(x()), atol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
class Written(keras.Model):
    """A model written as a class: only what it was called with tells its inputs."""

    def build(self, shape: Any) -> None:
        self.memory, self.shown = layers.GRU(4, return_sequences=True, name="memory"), layers.Dense(2)
        self.memory.build(shape)
        self.shown.build((*shape[:2], 4))

    def call(self, inputs: Any) -> Any:
        return self.shown(self.memory(inputs))


def test_a_model_that_is_a_class_is_exported_from_a_file(tmp_path: Path):
    model = Written()
    expected = model(x())
    model.save(tmp_path / "model.keras")
    served = export(tmp_path / "model.keras", tmp_path / "out")
    assert [state.name for state in served.signature.states] == ["memory/h"]
    assert served.signature.chunk_sizes == ()
    np.testing.assert_allclose(answer(served, x()), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_an_embedding_tells_what_its_input_may_hold(tmp_path: Path, dtype: str):
    """Indices, even where Keras' Input was left at float32."""
    model = behind(layers.Embedding(7, 3, mask_zero=True), layers.GRU(4), shape=(None,), dtype=dtype)
    spec = export(model, tmp_path / "out").signature.inputs[0]
    assert (spec.dtype, spec.bounds) == (np.int32, (0, 6))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_cudnn_layers_of_keras_2_are_read_as_keras_2_reads_them(tmp_path: Path, kind: str):
    """Keras 2's own conversion makes the weights of the file."""
    model = behind(getattr(layers, kind)(4, return_sequences=True, name="old"))
    path = keras_2.save(model, tmp_path / "old.h5", keras_2.to_cudnn)
    weights = _convert_rnn_weights(type(f"CuDNN{kind}", (), {})(), model.get_weights())
    with h5py.File(path, "r+") as file:
        places: dict[str, str] = {}
        file["model_weights/old"].visit(lambda place: places.update({place.rpartition("/")[2]: place}))
        for name, value in zip(("kernel", "recurrent_kernel", "bias"), weights, strict=True):
            place = f"model_weights/old/{places[name]}"
            del file[place]
            file[place] = value
    np.testing.assert_allclose(answer(export(path, tmp_path / "out"), x()), model(x()), atol=1e-6)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
@pytest.mark.parametrize("name", ["old.h5", "old.keras"])
def test_a_hard_sigmoid_of_keras_2_is_not_that_of_keras_3(tmp_path: Path, name: str):
    old = tf_keras.Sequential([tf_keras.Input((None, 3)), tf_keras.layers.LSTM(4, recurrent_activation="hard_sigmoid")])
    old.set_weights(lstm().get_weights())
    old.save(tmp_path / name)
    np.testing.assert_allclose(answer(export(tmp_path / name, tmp_path / "out"), x()), old(x()), atol=1e-6)


def test_a_sequential_of_the_first_keras_2_is_read(tmp_path: Path):
    """It is a list whose first layer tells the shape; and its GRU does not say that it resets before: all did."""
    model = behind(layers.GRU(4, use_bias=False, reset_after=False))

    def forget(layer: dict[str, Any]) -> None:
        layer["config"].pop("reset_after", None)

    path = keras_2.save(model, tmp_path / "old.h5", forget)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"] = config["config"]["layers"][1:]
        config["config"][0]["config"]["batch_input_shape"] = [1, None, 3]
        file.attrs["model_config"] = json.dumps(config)
    np.testing.assert_allclose(answer(export(path, tmp_path / "out"), x()), model(x()), atol=1e-6)


def test_a_module_that_registers_a_cell_is_imported_first_and_nothing_else_is_said(tmp_path: Path):
    model = behind(layers.RNN(LeakyCell(4), name="leaky", return_sequences=True), layers.GRU(3, name="known"))
    model.save(tmp_path / "leaky.keras")
    code = "import sys; from recurra.models.export.cli import export; sys.exit(export(sys.argv[1:]))"
    arguments = ["keras", str(tmp_path / "leaky.keras"), str(tmp_path / "out"), "--import", "tests.parity.keras_models"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'out'}: version 1, states leaky/state_1, known/h\n"


def test_another_backend_is_refused_with_what_to_do(tmp_path: Path):
    code = "import keras; from recurra.models.export.keras import export; export(keras.layers.LSTM(2), 'out')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"KERAS_BACKEND": "torch"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Keras runs on torch here, and only TensorFlow makes ONNX of it: save the model as .keras" in done.stderr


def test_a_version_that_exists_is_left_alone(tmp_path: Path):
    export(lstm(), tmp_path / "out")
    with pytest.raises(ModelRefused, match="exists; give another folder, or another version"):
        export(lstm(), tmp_path / "out")
    assert export(lstm(), tmp_path / "out", version=2).version == "2"


class Unregistered(layers.Layer):
    state_size = 2

    def call(self, inputs: Any, states: Any) -> Any:
        return states[0] + inputs[:, :2], [states[0] + inputs[:, :2]]


def test_a_custom_cell_that_is_not_registered_is_refused_with_what_to_do(tmp_path: Path):
    behind(layers.RNN(Unregistered())).save(tmp_path / "model.keras")
    Unregistered.__module__ = "somewhere"  # as if another program had saved it
    with pytest.raises(
        ModelRefused, match=r"does not load model\.keras: Could not locate class 'Unregistered'.* `--import MODULE`"
    ):
        export(tmp_path / "model.keras", tmp_path / "out")


@pytest.mark.parametrize("content", [None, "no model", b"PK"])
def test_what_is_no_file_of_keras_is_refused(tmp_path: Path, content: str | bytes | None):
    path = tmp_path / "model.keras"
    if content:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelRefused, match="there is no file" if content is None else "is no .keras or .h5 file; save"):
        export(path, tmp_path / "out")


def repeated() -> Any:
    return behind(layers.TimeDistributed(layers.LSTM(4, name="inside"), name="outside"), shape=(None, 5, 3))


def translated() -> Any:
    """The decoder starts from what the encoder made of the data."""
    source, target = keras.Input((None, 3), name="source"), keras.Input((None, 3), name="target")
    _, *states = layers.LSTM(4, return_state=True, name="encoder")(source)
    return keras.Model([source, target], layers.LSTM(4, name="decoder")(target, initial_state=states))


def unlike() -> Any:
    """Its graph is another model."""
    odd = layers.Lambda(lambda inputs: inputs if tf.executing_eagerly() else 2 * inputs)
    return keras.Sequential([keras.Input((None, 3)), odd, layers.LSTM(4)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unlike, "the graph differs from the model in Keras by 0"),
        (lambda: behind(layers.Dense(4)), "has no recurrent layer, cell, loop or causal convolution"),
        (lambda: layers.LSTM(4), "does not tell the shape of its inputs: give input_shape"),
        (lambda: tf_keras.layers.LSTM(4), "LSTM is no model or layer of Keras 3; save it as .h5"),
        (
            lambda: behind(layers.Discretization([0.0, 1.0]), layers.LSTM(4)),
            "ONNX has nothing for TensorFlow's Bucketize",
        ),
        (repeated, "'outside' runs the recurrent layer 'inside' anew at each timestep"),
        (translated, "'decoder' starts from states that its caller gives"),
    ],
)
def test_what_cannot_be_a_session_is_refused(tmp_path: Path, make: Any, message: str):
    with pytest.raises(ModelRefused, match=message):
        export(make(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encoder_makes_the_states_that_its_decoder_starts_from(tmp_path: Path):
    """Keras' own way: an LSTM that gives its states, and another that starts from them."""
    source, sentence = keras.Input((None, 3), name="source"), keras.Input((None, 2), name="sentence")
    _, *ends = layers.LSTM(4, return_state=True, name="reader")(source)
    writer = layers.LSTM(4, return_sequences=True, return_state=True, name="writer")
    words, *_ = writer(sentence, initial_state=ends)
    whole = randomised(keras.Model([source, sentence], words), "weights")
    begun = [keras.Input((4,), name=f"begun_{kind}") for kind in "hc"]
    encoder, decoder = keras.Model(source, ends), keras.Model([sentence, *begun], writer(sentence, initial_state=begun))
    encoder.save(tmp_path / "encoder.keras")
    model = export(decoder, tmp_path / "pair", start=tmp_path / "encoder.keras")
    assert [state.name for state in model.signature.states] == ["writer/h", "writer/c"]
    assert model.start is not None
    read, wrote = np.random.default_rng(1).normal(size=(1, 7, 3)), np.random.default_rng(2).normal(size=(1, 5, 2))
    states = list(model.start.run([read.astype(np.float32)]).values())
    (found,), _ = model.program.run([wrote.astype(np.float32)], states)
    np.testing.assert_allclose(found, whole.predict([read, wrote], verbose=0), atol=1e-6)


def test_the_whole_of_an_encoder_and_a_decoder_is_sent_to_start(tmp_path: Path):
    source, sentence = keras.Input((None, 3)), keras.Input((None, 2))
    _, *ends = layers.LSTM(4, return_state=True)(source)
    words = layers.LSTM(4, return_sequences=True, name="writer")(sentence, initial_state=ends)
    with pytest.raises(ModelRefused, match="--start ENCODER"):
        export(keras.Model([source, sentence], words), tmp_path / "pair")


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_outputs_in_a_dict_keep_their_keys(tmp_path: Path, kind: type[dict[str, Any]]):
    x = keras.Input((None, 3))
    h = keras.layers.GRU(4, return_sequences=True)(x)
    outputs = kind({"load": keras.layers.Dense(1)(h), "alarm": keras.layers.Dense(2)(h)})
    model = export(keras.Model(x, outputs), tmp_path / "two")
    assert {spec.name: spec.shape for spec in model.signature.outputs} == {"load": (1,), "alarm": (2,)}


def test_text_is_refused_with_what_to_leave_out(tmp_path: Path):
    words = keras.layers.TextVectorization(vocabulary=["red", "blue"])
    layers = [keras.Input((1,), dtype="string"), words, keras.layers.Embedding(4, 3), keras.layers.GRU(4)]
    with pytest.raises(ModelRefused, match="leave TextVectorization or StringLookup out"):
        export(keras.Sequential(layers), tmp_path / "text")


def test_import_finds_a_module_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cells_of_mine.py").write_text("LOADED = True\n")
    lstm().save(tmp_path / "model.keras")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    assert command(["keras", "model.keras", "out", "--import", "cells_of_mine"]) == 0
    assert sys.modules.pop("cells_of_mine").LOADED


def test_causal_convolutions_stream(tmp_path: Path):
    stack = [layers.Conv1D(4, 3, padding="causal", name="near"), layers.Conv1D(2, 2, padding="causal", dilation_rate=4)]
    built = behind(*stack, layers.LSTM(3, return_sequences=True))
    model = export(built, tmp_path / "net")
    assert {state.layer for state in model.signature.states} == {"near", "conv1d", "lstm"}
    states, parts = [np.stack([spec.fresh] * 2, axis=spec.batch_axis) for spec in model.signature.states], []
    for chunk in np.split(x(9), [4, 5, 6], axis=1):
        (y,), states = model.program.run([np.ascontiguousarray(chunk)], states)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), built.predict(x(9), verbose=0), atol=1e-6)
