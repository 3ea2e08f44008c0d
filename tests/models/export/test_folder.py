import sys
from pathlib import Path

import pytest

from recurra.models import ModelRefused, load
from recurra.models.config import StateConfig
from recurra.models.export import folder
from recurra.models.export.cli import export
from tests.models import graphs


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_what_is_written_is_what_the_server_loads(tmp_path: Path):
    model = folder.write(graphs.lstm(), tmp_path / "pair", source="a test")
    assert files(tmp_path) == ["pair/1/model.onnx", "pair/README.md", "pair/model.toml"]
    loaded = load(tmp_path / "pair", provider="cpu")
    assert (model.name, model.version) == (loaded.name, loaded.version) == ("pair", "1")
    assert (model.signature, model.layout) == (loaded.signature, loaded.layout)


def test_the_readme_tells_what_the_model_takes_and_gives(tmp_path: Path):
    folder.write(graphs.lstm(features=3, hidden=8), tmp_path / "pair", source="a test")
    folder.write(graphs.scaled_cell(dims=("batch", 1), kind=graphs.FLOAT), tmp_path / "two")
    readme = (tmp_path / "pair" / "README.md").read_text()
    assert readme.startswith("# pair\n\nExported from a test.\n")
    for line in (
        "| `x` | input | float32 | (time, 3) |",
        "| `y` | output | float32 | (time, 8) |",
        "| `lstm_1/c` | state of lstm_1 | float32 | (1, 8) |",
        "A session's state has 64 bytes.",
        'session = client.session("pair", "SESSION")\nsession.predict(...)',
    ):
        assert line in readme
    assert 'session.predict({"x": ..., "rate": ...})' in (tmp_path / "two" / "README.md").read_text()


def test_pairs_that_the_graph_does_not_tell_are_told_in_model_toml(tmp_path: Path):
    told = StateConfig("inner", "h_in", "h_out", layer="cell", batch_axis=0, fresh=0.5)
    model = folder.write(graphs.one_step_cell()[0], tmp_path / "cell", states=[told])
    (state,) = model.signature.states
    assert (state.name, state.layer, state.batch_axis, state.fresh.min()) == ("inner", "cell", 0, 0.5)
    assert load(tmp_path / "cell", provider="cpu").layout == model.layout


def test_another_version_keeps_model_toml_and_readme_as_their_user_left_them(tmp_path: Path):
    folder.write(graphs.lstm(), tmp_path / "pair")
    (tmp_path / "pair" / "model.toml").write_text("max_batch = 9\n")
    (tmp_path / "pair" / "README.md").write_text("# Ours\n")
    model = folder.write(graphs.lstm(hidden=4), tmp_path / "pair", version=2)
    assert (model.version, model.max_batch) == ("2", 9)
    assert (tmp_path / "pair" / "model.toml").read_text() == "max_batch = 9\n"
    assert (tmp_path / "pair" / "README.md").read_text() == "# Ours\n"
    assert load(tmp_path / "pair", provider="cpu").layout == model.layout


def test_a_version_that_exists_is_not_written_over(tmp_path: Path):
    folder.write(graphs.lstm(), tmp_path / "pair")
    before = (tmp_path / "pair" / "1" / "model.onnx").read_bytes()
    with pytest.raises(ModelRefused, match="exists; give another folder, or another version"):
        folder.write(graphs.lstm(hidden=4), tmp_path / "pair")
    assert (tmp_path / "pair" / "1" / "model.onnx").read_bytes() == before


def test_a_model_that_the_server_would_refuse_is_not_written(tmp_path: Path):
    with pytest.raises(ModelRefused, match="depends on the whole chunk"):
        folder.write(graphs.mean_over_time(), tmp_path / "mean")
    with pytest.raises(ModelRefused, match="'two words' is no name for a model"):
        folder.write(graphs.lstm(), tmp_path / "two words")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_to_install_where_a_framework_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "recurra.models.export.torch", None)
    assert export(["torch", "package.module:net", "out"]) == 1
    assert "pip install 'recurra[export]'" in capsys.readouterr().err


def test_the_command_asks_for_what_it_needs(capsys: pytest.CaptureFixture[str]):
    for argv in ([], ["torch"], ["torch", "package.module:net"], ["theano", "model", "out"]):
        with pytest.raises(SystemExit, match="2"):
            export(argv)
    assert "invalid choice: 'theano'" in capsys.readouterr().err
