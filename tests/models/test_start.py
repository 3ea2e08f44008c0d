"""start.onnx: what it gives must be states of model.onnx, or the model is refused with the reason."""

from pathlib import Path

import graphs
import numpy as np
import pytest
from onnx import ModelProto, helper

from recurra.models import Model, ModelRefused, load
from recurra.models.repository import load_file

SOURCE = graphs.info("source", ["batch", "length", 5])


def projected(output: str = "h0", *, hidden: int = 8, source: object = SOURCE, weight: float = 0.1) -> ModelProto:
    """The mean of a source over its length, projected to a state (N, hidden)."""
    nodes = [
        helper.make_node("ReduceMean", ["source"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], [output]),
    ]
    stored = [graphs.const("w", np.full((5, hidden), weight), np.float32)]
    return graphs.model(nodes, [source], [graphs.info(output, ["batch", hidden])], stored)


def started(tmp_path: Path, start: ModelProto, toml: str = "") -> Model:
    folder = graphs.write(graphs.gru_exposed()[0], tmp_path, toml=toml)
    (folder / "1/start.onnx").write_bytes(start.SerializeToString())
    return load(folder, provider="cpu")


@pytest.mark.parametrize("output", ["h0", "h_0"])
def test_a_source_of_any_length_becomes_the_states(tmp_path: Path, output: str):
    toml = '[[states]]\nname = "h_0"\ninput = "h0"\noutput = "hn"\n' if output == "h_0" else ""
    start = started(tmp_path, projected(output), toml).start
    assert start is not None
    assert [(spec.name, spec.shape) for spec in start.inputs] == [("source", (None, 5))]
    source = np.random.default_rng(0).normal(size=(1, 7, 5)).astype(np.float32)
    (state,) = start.run([source]).values()
    np.testing.assert_allclose(state, np.full((1, 1, 8), source.mean(axis=1).sum() * 0.1), rtol=1e-5)


def test_states_that_it_does_not_make_are_fresh(tmp_path: Path):
    folder = graphs.write(graphs.lstm(), tmp_path)
    model = load(folder, provider="cpu")
    names = [state.name for state in model.signature.states]
    built = projected(names[0], hidden=model.signature.states[0].shape[-1])
    (folder / "1/start.onnx").write_bytes(built.SerializeToString())
    start = load(folder, provider="cpu").start
    assert start is not None
    made, fresh = start.run([np.ones((1, 7, 5), np.float32)]).values()
    assert made.any()
    np.testing.assert_array_equal(fresh, model.signature.states[1].fresh[None])


def test_a_model_without_one_starts_fresh(tmp_path: Path):
    assert load(graphs.write(graphs.gru_exposed()[0], tmp_path), provider="cpu").start is None


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (projected("context"), "output 'context' is no state of model.onnx; call its outputs as the states: 'h0'"),
        (projected(hidden=9), "gives state 'h0' as float32 of shape .1, 9.; it is float32 of shape .1, 8."),
        (projected(weight=np.inf), "a NaN or an infinity for state 'h0'"),
        (projected(source=graphs.info("source", [4, "length", 5])), "needs a batch axis in front"),
    ],
)
def test_what_is_wrong_with_it_is_told(tmp_path: Path, start: ModelProto, reason: str):
    with pytest.raises(ModelRefused, match=reason):
        started(tmp_path, start)


def test_its_digest_is_honoured(tmp_path: Path):
    with pytest.raises(ModelRefused, match=r"start.onnx has sha256"):
        started(tmp_path, projected(), f'start_sha256 = "{"0" * 64}"\n')


def test_a_digest_without_the_file_is_refused(tmp_path: Path):
    folder = graphs.write(graphs.gru_exposed()[0], tmp_path, toml=f'start_sha256 = "{"0" * 64}"\n')
    with pytest.raises(ModelRefused, match=r"start.onnx cannot be read"):
        load(folder, provider="cpu")


def test_one_beside_a_file_of_another_name_is_not_its_own(tmp_path: Path):
    (tmp_path / "other.onnx").write_bytes(graphs.gru_exposed()[0].SerializeToString())
    (tmp_path / "start.onnx").write_bytes(b"this is no model")
    assert load_file(tmp_path / "other.onnx", "other", "0", tmp_path, provider="cpu").start is None
