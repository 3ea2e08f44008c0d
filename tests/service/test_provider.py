"""Servers that lack the GPU that they, or a model, were told to use; and with states in the device's memory."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from recurra.client import Client
from recurra.models import choose
from tests.conftest import StartServer
from tests.service import zoo
from tests.service.processes import ServerProcess, ValkeyProcess

without_gpu = pytest.mark.skipif(choose("auto").provider != "cpu", reason="there is a GPU")


@without_gpu
@pytest.mark.parametrize("flags", [("--provider", "cuda"), ("--provider", "tensorrt", "--workers", "2")])
def test_a_server_that_is_told_to_use_a_gpu_stops_where_there_is_none(repository: Path, tmp_path: Path, flags):
    server = ServerProcess(repository, tmp_path / "data", *flags)
    server.launch()
    assert server.wait() == 1
    assert f"recurra serve: --provider {flags[1]}: no GPU can be used (" in server.log
    assert "model.loaded" not in server.log
    assert not (tmp_path / "data").exists()  # nor was a store started


@without_gpu
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


def test_sessions_go_on_between_servers_with_states_on_the_host_and_on_the_device(
    start_server: StartServer, valkey: ValkeyProcess
):
    """In turns, then on a stream whose server is killed: what it had not written yet is replayed on the other."""
    servers = [start_server("--states", states, store=valkey.url) for states in ("device", "host")]
    lstm, chunks = zoo.MODELS["lstm"], [zoo.MODELS["lstm"].draw(turn, 1 + turn % 3) for turn in range(12)]
    assert ["states=device" in server.log for server in servers] == [True, False]
    found = []
    with Client(servers[0].address) as first, Client(servers[1].address) as second:
        for turn, chunk in enumerate(chunks):
            found.append((first, second)[turn % 2].session("lstm", "moving").predict(chunk))
    np.testing.assert_allclose(np.concatenate(found), lstm.whole(*chunks), **zoo.CLOSE)
    with (
        Client([server.address for server in servers]) as client,
        client.stream("lstm", durability="checkpointed") as stream,
    ):
        for turn, chunk in enumerate(chunks):
            if turn == 7:
                servers[0].kill()
            got = stream.predict("streamed", chunk)
            np.testing.assert_allclose(got, lstm.whole(*chunks[: turn + 1])[-len(chunk) :], **zoo.CLOSE)
