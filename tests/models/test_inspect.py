import json
import sys
from pathlib import Path

import graphs
import numpy as np
import pytest

from recurra.models.cli import inspect


def test_a_folder_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = graphs.write(graphs.embedding_gru()[0], tmp_path, "words")
    assert inspect([str(folder), "--provider", "cpu"]) == 0
    shown = capsys.readouterr().out
    for text in ("words version 1", "tokens", "int64", "0 to 10", "gru_1/h", "zeros", "up to 256", "CPUExecution"):
        assert text in shown


def test_a_file_is_shown_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = graphs.write(graphs.lstm(), tmp_path, "pair", "3", toml="max_batch = 9\n")
    assert inspect([str(folder / "3" / "model.onnx"), "--json", "--provider", "cpu"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["version"], shown["max_batch"]) == ("pair", "3", 9)
    assert shown["states"][1] == {
        "name": "lstm_1/c",
        "layer": "lstm_1",
        "dtype": "float32",
        "shape": [1, 8],
        "batch_axis": 1,
        "input": "lstm_1/c",
        "output": "lstm_1/c/next",
        "fresh": "zeros",
    }
    assert shown["self_test"]["chunked"] is True


def test_a_refusal_is_told_with_status_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = graphs.write(graphs.mean_over_time(), tmp_path)
    assert inspect([str(folder)]) == 1
    assert "refused: the output at a timestep depends on the whole chunk" in capsys.readouterr().err
    assert inspect([str(tmp_path / "nothing.onnx")]) == 1
    assert "there is no file or folder" in capsys.readouterr().err


def test_the_memory_horizon_is_drawn_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = graphs.write(graphs.lstm(layers=2), tmp_path, "deep")
    given, picture = tmp_path / "x.csv", tmp_path / "deep.png"
    np.savetxt(given, np.random.default_rng(0).normal(size=(60, 3)), delimiter=",", header="a,b,c", comments="")
    command = [str(folder), "--plot", str(picture), "--input", str(given), "--timesteps", "30", "--provider", "cpu"]
    assert inspect(command) == 0
    shown = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = {}
    for fraction in ("0.1", "0.01"):
        assert inspect([*command, "--json", "--fraction", fraction]) == 0
        told[fraction] = json.loads(capsys.readouterr().out)["horizon"]
    assert list(told["0.1"]["layers"]) == ["lstm_1", "lstm_2"]
    assert f"lstm_2: under 0.01 from timestep {told['0.01']['layers']['lstm_2']} on" in shown
    assert f"outputs: under 0.01 from timestep {told['0.01']['outputs']} on" in shown
    assert told["0.1"]["layers"]["lstm_1"] < told["0.01"]["layers"]["lstm_1"]


def test_a_picture_that_cannot_be_made_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folder = str(graphs.write(graphs.lstm(), tmp_path))
    assert inspect([folder, "--plot", str(tmp_path / "nowhere" / "a.png")]) == 1
    assert inspect([folder, "--plot", str(tmp_path / "a.nothing")]) == 1
    assert capsys.readouterr().err.count("cannot be written") == 2
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert inspect([folder, "--plot", str(tmp_path / "a.png")]) == 1
    assert "pip install 'recurra[plot]'" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["--timesteps=0", "--fraction=1", "--fraction=nan", "--input=x.npy"])
def test_wrong_usage_ends_with_status_two(wrong: str):
    with pytest.raises(SystemExit, match="2"):
        inspect(["model.onnx", wrong])
