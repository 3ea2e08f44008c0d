"""Servers on machines that lack the GPU that they, or one of their models, were told to use."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from recurra.client import Client
from recurra.models import choose
from tests.service.processes import ServerProcess

pytestmark = pytest.mark.skipif(choose("auto").provider != "cpu", reason="there is a GPU")


@pytest.mark.parametrize("flags", [("--provider", "cuda"), ("--provider", "tensorrt", "--workers", "2")])
def test_a_server_that_is_told_to_use_a_gpu_stops_where_there_is_none(repository: Path, tmp_path: Path, flags):
    server = ServerProcess(repository, tmp_path / "data", *flags)
    server.launch()
    assert server.wait() == 1
    assert f"recurra serve: --provider {flags[1]}: no GPU can be used (" in server.log
    assert "model.loaded" not in server.log
    assert not (tmp_path / "data").exists()  # nor was a store started


def test_auto_says_what_it_chose_and_a_model_that_needs_a_gpu_is_refused_alone(repository: Path, tmp_path: Path):
    models = tmp_path / "models"
    for name in ("lstm", "gru"):
        shutil.copytree(repository / name, models / name)
    (models / "gru" / "model.toml").write_text('provider = "cuda"\n')
    with closing(ServerProcess(models, tmp_path / "data", "--provider", "auto", "--log-format", "json")) as server:
        server.start()
        with Client(server.address) as client:
            found = {model.name: model for model in client.models()}
        assert (found["lstm"].status, found["gru"].status) == ("ready", "failed")
        assert "no GPU can be used" in found["gru"].error
        assert list(found["lstm"].nodes) == ["CPUExecutionProvider"]
        assert found["lstm"].strays == ()
        events = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    (chosen,) = [event for event in events if event["event"] == "provider.chosen"]
    assert (chosen["asked"], chosen["chosen"]) == ("auto", "cpu")
    assert chosen["reason"].startswith("no GPU can be used: ")
    (loaded,) = [event for event in events if event["event"] == "model.loaded"]
    assert (loaded["model"], loaded["provider"]) == ("lstm", "CPUExecutionProvider")
