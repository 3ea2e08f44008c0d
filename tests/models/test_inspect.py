import json
from pathlib import Path

import graphs
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
