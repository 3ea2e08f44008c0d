from pathlib import Path

import graphs
import pytest
from onnx import helper

import recurra.models
from recurra.models import ModelRefused, find, load


def test_models_are_found_and_the_highest_version_is_served(tmp_path: Path):
    for version in ("2", "10", "draft"):
        graphs.write(graphs.lstm(), tmp_path, "b.model-1", version)
    graphs.write(graphs.lstm(), tmp_path, "a")
    graphs.write(graphs.lstm(), tmp_path, "no spaces")
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("not a model")
    assert list(find(tmp_path)) == ["a", "b.model-1"]
    model = load(find(tmp_path)["b.model-1"], provider="cpu")
    assert (model.name, model.version) == ("b.model-1", "10")


def test_what_is_no_repository_or_no_model_is_refused(tmp_path: Path):
    with pytest.raises(ModelRefused, match="is no folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(ModelRefused, match="has no version: put the file at"):
        load(tmp_path)
    with pytest.raises(ModelRefused, match="'no spaces' is no name for a model"):
        load(graphs.write(graphs.lstm(), tmp_path, "no spaces"))


def test_the_layout_tells_states_of_other_shapes_apart(tmp_path: Path):
    built = {
        "same": graphs.lstm(),
        "features": graphs.lstm(features=5),
        "hidden": graphs.lstm(hidden=9),
        "op": graphs.native("GRU")[0],
    }
    layouts = {name: load(graphs.write(each, tmp_path, name), provider="cpu").layout for name, each in built.items()}
    assert layouts["same"] == layouts["features"]
    assert len(set(layouts.values())) == 3
    assert all(len(layout) == 16 for layout in layouts.values())


def test_limits_of_model_toml_are_obeyed(tmp_path: Path):
    folder = graphs.write(graphs.lstm(), tmp_path, toml="max_batch = 7\nsession_ttl = 60\n")
    model = load(folder, provider="cpu")
    assert (model.max_batch, model.config.session_ttl, model.config.durability) == (7, 60, "committed")


def test_an_input_that_looks_like_lengths_is_told(tmp_path: Path):
    """The last output of each row is picked by them, but the state is that of the whole padded chunk."""
    built = graphs.lstm()
    built.graph.input.append(graphs.info("lengths", ["batch"], graphs.INT64))
    built.graph.output[0].name = "picked"
    built.graph.node.extend(
        [
            helper.make_node("Sub", ["lengths", "one_less"], ["last"]),
            helper.make_node("Unsqueeze", ["last", "one_less"], ["last_of_each"]),
            helper.make_node("GatherND", ["y", "last_of_each"], ["picked"], batch_dims=1),
        ]
    )
    built.graph.initializer.append(graphs.const("one_less", [1]))
    (note,) = load(graphs.write(built, tmp_path), provider="cpu").self_test.notes
    assert "input 'lengths' looks like the lengths of padded rows" in note


def test_the_public_names_are_these():
    assert recurra.models.__all__ == [
        "Choice",
        "Model",
        "ModelConfig",
        "ModelRefused",
        "Pool",
        "PoolProgram",
        "Program",
        "SelfTest",
        "Signature",
        "Start",
        "StateSpec",
        "Stray",
        "TensorSpec",
        "choose",
        "find",
        "load",
        "wanted",
    ]
