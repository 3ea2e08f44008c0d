from pathlib import Path

import graphs
import numpy as np
import pytest
from graphs import const, info
from onnx import helper

from recurra.models import Model, ModelRefused, load
from recurra.models import horizon as horizons
from recurra.models.horizon import fading


def ready(built, tmp_path: Path, toml: str = "") -> Model:
    return load(graphs.write(built, tmp_path, toml=toml), provider="cpu")


def linear(weight: float, *, constant_input: float = 1.0):
    """h' = weight * h + x, one unit, a native RNN node whose activation is the identity."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2]),
        helper.make_node(
            "RNN",
            ["x_time", "w", "r"],
            ["h"],
            hidden_size=1,
            activations=["Affine"],
            activation_alpha=[1.0],
            activation_beta=[0.0],
        ),
        helper.make_node("Squeeze", ["h", "one"], ["h_time"]),
        helper.make_node("Transpose", ["h_time"], ["y"], perm=[1, 0, 2]),
    ]
    weights = [
        const("w", [[[constant_input]]], np.float32),
        const("r", [[[weight]]], np.float32),
        const("one", [1]),
    ]
    sizes = ["batch", "time", 1]
    return graphs.model(nodes, [info("x", sizes)], [info("y", sizes)], weights)


def test_a_linear_unit_forgets_by_its_weight(tmp_path: Path):
    found = fading(ready(linear(0.97), tmp_path), timesteps=40)
    assert list(found.layers) == ["rnn_1"]
    for curve in found.curves().values():
        np.testing.assert_allclose(curve.left, 0.97 ** np.arange(41), atol=1e-3)
        assert curve.left[10] == pytest.approx(0.737, abs=1e-3)


def test_the_horizon_moves_with_the_fraction(tmp_path: Path):
    curve = fading(ready(linear(0.9), tmp_path), timesteps=60).layers["rnn_1"]
    # 0.9 ** 22 = 0.0985, 0.9 ** 44 = 0.0097
    assert (curve.horizon(0.1), curve.horizon(0.01), curve.horizon(0.001)) == (22, 44, None)


def test_a_unit_that_forgets_nothing_has_no_horizon(tmp_path: Path):
    curve = fading(ready(linear(1.0), tmp_path), timesteps=10).layers["rnn_1"]
    assert curve.horizon(0.5) is None
    np.testing.assert_allclose(curve.left, 1, atol=1e-3)


def test_what_may_be_rounding_is_not_shown_as_memory(tmp_path: Path):
    curve = fading(ready(linear(0.5), tmp_path), timesteps=60).layers["rnn_1"]
    seen = curve.left[~np.isnan(curve.left)]
    np.testing.assert_allclose(seen, 0.5 ** np.arange(len(seen)), rtol=0.2)
    assert 12 < len(seen) < 25
    assert curve.horizon(1e-9) is None


def test_each_layer_has_a_curve_and_so_have_the_outputs(tmp_path: Path):
    found = fading(ready(graphs.lstm(layers=2), tmp_path), timesteps=20)
    assert list(found.curves()) == ["lstm_1", "lstm_2", "outputs"]
    for curve in found.curves().values():
        assert curve.left.shape == curve.floor.shape == (21,)
        assert curve.left[0] == 1
        assert curve.horizon(0.1) is not None


def test_the_curve_does_not_depend_on_the_size_of_the_disturbance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = ready(graphs.lstm(layers=2), tmp_path)
    usual = fading(model, timesteps=8).curves()
    monkeypatch.setattr(horizons, "_SIZE", horizons._SIZE / 5)
    for name, curve in fading(model, timesteps=8).curves().items():
        np.testing.assert_allclose(usual[name].left, curve.left, rtol=0.01)


def test_token_ids_are_replaced_by_others(tmp_path: Path):
    model = ready(graphs.embedding_gru()[0], tmp_path)
    assert fading(model, timesteps=20).layers["gru_1"].horizon(0.1) is not None
    tokens = np.random.default_rng(1).integers(0, 11, (1, 30))
    both = horizons._disturbed(tokens, model.signature.inputs[0], 5, np.random.default_rng(0))
    assert [list(changed) for changed in np.nonzero(both[0] != both[1])] == [[5]]
    assert both.min() >= 0
    assert both.max() <= 10


@pytest.mark.parametrize("batch", ["batch", 1, None])
def test_a_model_of_one_timestep_a_call_is_watched(tmp_path: Path, batch: str | int | None):
    found = fading(ready(graphs.one_step_cell(batch=batch)[0], tmp_path), timesteps=10)
    assert [len(curve.left) for curve in found.curves().values()] == [11, 11]
    assert found.outputs is not None
    (layer,) = found.layers.values()
    np.testing.assert_allclose(layer.left, found.outputs.left)


def test_a_model_that_gives_its_last_output_alone_is_watched(tmp_path: Path):
    model = ready(graphs.native("GRU", last_only=True)[0], tmp_path)
    found = fading(model, timesteps=10)
    assert found.outputs is not None
    np.testing.assert_allclose(found.layers["gru_1"].left, found.outputs.left)


def test_longer_chunks_are_told_in_timesteps(tmp_path: Path):
    model = ready(graphs.lstm(), tmp_path, toml="[inputs.x]\nchunk_sizes = [4, 8]\n")
    curve = fading(model, timesteps=10).layers["lstm_1"]
    alone = fading(ready(graphs.lstm(), tmp_path / "any"), timesteps=12).layers["lstm_1"]
    assert list(curve.timesteps) == [0, 4, 8, 12]
    np.testing.assert_allclose(curve.left, alone.left[::4], rtol=0.5)


def test_inputs_that_are_given_are_used(tmp_path: Path):
    model = ready(graphs.lstm(), tmp_path)
    saturated = [np.full((1, 41, 3), 50, np.float32)]
    noise, given = fading(model, timesteps=20), fading(model, saturated, timesteps=20)
    assert not np.allclose(noise.layers["lstm_1"].left, given.layers["lstm_1"].left, atol=0.01)


def test_too_short_an_input_is_refused(tmp_path: Path):
    model = ready(graphs.lstm(), tmp_path)
    assert fading(model, [np.zeros((1, 11, 3), np.float32)], timesteps=10)
    with pytest.raises(ModelRefused, match="too short to watch 11 timesteps"):
        fading(model, [np.zeros((1, 11, 3), np.float32)], timesteps=11)


def test_an_input_that_changes_no_state_is_refused(tmp_path: Path):
    deaf = ready(linear(0.5, constant_input=0.0), tmp_path)
    with pytest.raises(ModelRefused, match="changes no state"):
        fading(deaf, timesteps=5)


def test_an_input_that_the_model_fails_on_is_refused(tmp_path: Path):
    """Ids of a table that the bounds do not tell, since they are computed first."""
    nodes = [
        helper.make_node("Cast", ["h"], ["id"], to=graphs.INT64),
        helper.make_node("Gather", ["table", "id"], ["one"]),
        helper.make_node("Add", ["h", "x"], ["sum"]),
        helper.make_node("Mul", ["sum", "one"], ["h_out"]),
    ]
    sizes = ["batch", 1]
    table = const("table", [1] * 100, np.float32)
    built = graphs.model(nodes, [info("x", sizes), info("h", sizes)], [info("h_out", sizes)], [table])
    built.graph.output.append(info("y", sizes))
    built.graph.node.append(helper.make_node("Identity", ["h_out"], ["y"]))
    toml = '[[states]]\nname = "h"\ninput = "h"\noutput = "h_out"\n'
    with pytest.raises(ModelRefused, match="the model fails on this input"):
        fading(ready(built, tmp_path, toml), [np.full((1, 9, 1), 99, np.float32)], timesteps=3)


def test_a_state_that_leaves_all_bounds_has_no_horizon(tmp_path: Path):
    with pytest.raises(ModelRefused, match="a state is not finite"):
        fading(ready(linear(2.0), tmp_path), timesteps=200)
