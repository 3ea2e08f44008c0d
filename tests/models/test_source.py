import hashlib
from pathlib import Path

import graphs
import onnx
import pytest
from onnx import helper

from recurra.models import ModelRefused, load, source


def test_a_file_that_is_no_model_is_refused(tmp_path: Path):
    folder = graphs.write(graphs.lstm(), tmp_path)
    file = folder / "1" / "model.onnx"
    whole = file.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2], b"\x00" * 100):
        file.write_bytes(content)
        with pytest.raises(ModelRefused, match="is no ONNX model"):
            load(folder, provider="cpu")


def test_another_digest_than_the_pinned_one_is_refused(tmp_path: Path):
    built = graphs.lstm()
    digest = hashlib.sha256(built.SerializeToString()).hexdigest()
    load(graphs.write(built, tmp_path, toml=f'sha256 = "{digest}"\n'), provider="cpu")
    with pytest.raises(ModelRefused, match=f"has sha256 {digest}"):
        load(graphs.write(built, tmp_path, toml=f'sha256 = "{"0" * 64}"\n'), provider="cpu")


def test_operators_of_other_domains_are_refused(tmp_path: Path):
    built = graphs.lstm_with([helper.make_node("Spell", ["mid"], ["y"], domain="evil", name="n")])
    with pytest.raises(ModelRefused, match="Spell node 'n' is of domain 'evil'"):
        load(graphs.write(built, tmp_path), provider="cpu")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"activations": ["Sigmoid", "Tanh", "Tanh", "Tanh"]}, "has 4 activations, but needs 3"),
        ({"activations": ["Sigmoid"]}, "has 1 activations, but needs 3"),
        ({"activations": ["Sigmoid", "Tanh", "Wave"]}, "the activation 'Wave'"),
        ({"activation_alpha": [1.0] * 9}, "more values in activation_alpha"),
        ({"direction": "sideways"}, "direction 'sideways'"),
    ],
)
def test_a_native_node_that_would_crash_the_runtime_is_refused(attributes: dict[str, object], message: str):
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4, **attributes)
    with pytest.raises(ModelRefused, match=message):
        source.check(graphs.model([node], [graphs.info("x", [1, 1, 1])], [graphs.info("y", None)]))


def external(built: onnx.ModelProto, folder: Path, location: str) -> None:
    """Moves the weights W to the file `location`, as the exporters do for large models."""
    tensor = next(each for each in built.graph.initializer if each.name.endswith("_w"))
    raw = tensor.raw_data
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / location).resolve().write_bytes(raw)


def test_external_data_beside_the_file_is_read(tmp_path: Path):
    built = graphs.lstm()
    external(built, tmp_path / "model", "weights.bin")
    assert load(graphs.write(built, tmp_path), provider="cpu").self_test.chunked


@pytest.mark.parametrize("location", ["../weights.bin", "/nowhere/weights.bin", "link.bin"])
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str):
    built = graphs.lstm()
    (tmp_path / "model" / "1").mkdir(parents=True)
    if location == "link.bin":
        (tmp_path / "secret").write_bytes(b"")
        (tmp_path / "model" / "1" / location).symlink_to(tmp_path / "secret")
    if location.startswith("/"):
        external(built, tmp_path / "model", "weights.bin")
        tensor = next(each for each in built.graph.initializer if each.name.endswith("_w"))
        tensor.external_data[0].value = location
    else:
        external(built, tmp_path / "model", location)
    with pytest.raises(ModelRefused, match="outside of the model's folder"):
        load(graphs.write(built, tmp_path), provider="cpu")


def test_external_data_that_is_missing_or_short_is_refused(tmp_path: Path):
    built = graphs.lstm()
    external(built, tmp_path / "model", "weights.bin")
    folder = graphs.write(built, tmp_path)
    weights = folder / "1" / "weights.bin"
    weights.write_bytes(b"short")
    with pytest.raises(ModelRefused):
        load(folder, provider="cpu")
    weights.unlink()
    with pytest.raises(ModelRefused, match=r"cannot be read from 'weights\.bin'"):
        load(folder, provider="cpu")


def test_nodes_in_any_order_are_served(tmp_path: Path):
    built = graphs.lstm()
    nodes = [*built.graph.node][::-1]
    del built.graph.node[:]
    built.graph.node.extend(nodes)
    for made_for in ("cpu", "cuda"):
        assert load(graphs.write(built, tmp_path), provider="cpu", made_for=made_for).signature.states


def test_nodes_that_read_from_each_other_are_refused(tmp_path: Path):
    circle = [helper.make_node("Identity", ["b"], ["a"]), helper.make_node("Identity", ["a"], ["b"])]
    built = graphs.lstm_with([helper.make_node("Neg", ["mid"], ["y"]), *circle])
    with pytest.raises(ModelRefused, match="read from each other in a circle"):
        load(graphs.write(built, tmp_path), provider="cpu")
