from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from recurra.client import cli
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
X = LSTM.draw(30, 4)


@pytest.fixture
def run(server, capsys, monkeypatch):
    monkeypatch.setenv("RECURRA_ADDRESS", server.address)

    def run(*argv: str) -> tuple[int, str, str]:
        status = cli.main(argv)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_models(run) -> None:
    status, out, _ = run("models")
    assert status == 0
    assert "lstm" in out
    status, out, _ = run("models", "--json")
    assert {model["name"] for model in json.loads(out)} == {*MODELS, "broken"}


def test_predict_from_json_csv_npy_and_stdin(run, tmp_path, monkeypatch) -> None:
    np.save(tmp_path / "x.npy", X)
    np.savetxt(tmp_path / "x.csv", X, delimiter=",", header="a,b,c", comments="")
    np.savetxt(tmp_path / "marked.csv", X, delimiter=",", encoding="utf-8-sig")  # as spreadsheets write it
    monkeypatch.setattr(sys, "stdin", (tmp_path / "x.json").open("w+"))
    sys.stdin.write(json.dumps(X.tolist()))
    sys.stdin.seek(0)
    with sys.stdin:
        for source in (
            json.dumps({"x": X.tolist()}),
            f"@{tmp_path}/x.npy",
            f"@{tmp_path}/x.csv",
            f"@{tmp_path}/marked.csv",
            "-",
        ):
            status, out, err = run("predict", "lstm", "--input", source, "--json")
            assert status == 0, err
            np.testing.assert_allclose(json.loads(out), LSTM.whole(X), **CLOSE)


def test_sessions(run, session) -> None:
    for _ in range(2):
        assert run("predict", "lstm", "--session", session, "--input", json.dumps(X.tolist()))[0] == 0
    status, out, _ = run("sessions", "show", "lstm", session, "--json")
    assert json.loads(out)[0]["position"] == 8
    assert session in run("sessions", "list", "lstm", "--json")[1]
    status, out, _ = run("sessions", "reset", "lstm", session, "--json")
    assert (status, json.loads(out)[0]["position"]) == (0, 0)
    assert run("sessions", "end", "lstm", session)[0] == 0
    status, _, err = run("sessions", "show", "lstm", session)
    assert status == 1
    assert err.startswith("CLOSED: ")


def test_predict_takes_what_a_session_starts_from(run) -> None:
    source = json.dumps([[0.5] * 5] * 3)
    status, out, _ = run("predict", "gru", "--input", "[[1,2,3]]", "--start", source, "--json")
    fresh = run("predict", "gru", "--input", "[[1,2,3]]", "--json")[1]
    assert status == 0
    assert np.abs(np.array(json.loads(out)) - np.array(json.loads(fresh))).max() > 1e-3


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("sessions", "reset", "lstm", "nobody"), "SESSION_NOT_FOUND: "),
        (("predict", "none", "--input", "[1]"), "MODEL_NOT_FOUND: "),
        (("predict", "lstm", "--input", "[1"), "INVALID_ARGUMENT: --input is not JSON"),
        (("predict", "gru", "--input", "[[1,2,3]]", "--start", "[1"), "INVALID_ARGUMENT: --start is not JSON"),
        (("predict", "lstm", "--input", '"x"'), "INVALID_ARGUMENT: --input must be an array"),
        (("predict", "lstm", "--input", "@nowhere.npy"), "[Errno 2] No such file"),
        (("models", "--address", "127.0.0.1:1", "--timeout", "0.2"), "UNREACHABLE: "),
    ],
)
def test_errors_are_one_line(run, argv, says) -> None:
    status, out, err = run(*argv)
    assert (status, out) == (1, "")
    assert err.startswith(says)
    assert err.count("\n") == 1


def test_subcommands_of_packages_that_are_missing_say_what_to_install(run, monkeypatch) -> None:
    class Point:
        name = "serve"

        def load(self):
            raise ModuleNotFoundError("No module named 'redis'")

    for points in ([Point()], []):
        monkeypatch.setattr(cli, "entry_points", lambda points=points, **_: points)
        status, _, err = run("serve", "--models", ".")
        assert status == 1
        assert "pip install 'recurra[server]'" in err


def test_tables_without_rich_say_what_to_install(run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.table", None)
    status, _, err = run("models")
    assert status == 1
    assert "pip install 'recurra[cli]'" in err
