"""Models loaded and unloaded by Triton's clients, where the server allows it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from recurra.wire.errors import ModelNotFound, Unimplemented
from tests.conftest import StartServer
from tests.models import graphs
from tests.service.caller import Caller
from tests.service.processes import ServerProcess
from tests.service.tritons import infer, reason, refused
from tests.service.zoo import CLOSE, MODELS

LSTM, GRU = MODELS["lstm"], MODELS["gru"]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    graphs.write(LSTM.built, tmp_path / "models", "lstm")
    return tmp_path / "models"


@pytest.fixture
def server(models: Path, start_server: StartServer) -> ServerProcess:
    return start_server("--model-control", "explicit", models=models)


@pytest.fixture
def triton(server: ServerProcess) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.address) as client:
        yield client


def test_a_model_comes_and_goes_and_its_sequences_stay(triton: InferenceServerClient, models: Path):
    x = GRU.draw(0, 4)
    with refused("INVALID_ARGUMENT", "Request for unknown model: 'gru' is not found"):
        triton.load_model("gru")
    graphs.write(GRU.built, models, "gru")
    triton.load_model("gru")
    found = [infer(triton, "gru", x[:2], 1, start=True)]
    triton.unload_model("gru")
    assert not triton.is_model_ready("gru")
    with refused("INVALID_ARGUMENT", "Request for unknown model: 'gru' is not found") as caught:
        infer(triton, "gru", x, 1)
    assert isinstance(reason(caught.value), ModelNotFound)
    triton.load_model("gru")
    found.append(infer(triton, "gru", x[2:], 1))
    np.testing.assert_allclose(np.concatenate(found), GRU.whole(x), **CLOSE)


def test_a_newer_version_takes_over_with_the_sequences_there_are(
    triton: InferenceServerClient, server: ServerProcess, models: Path
):
    x = LSTM.draw(1, 6)
    with Caller(server.address) as caller, caller.stream("lstm", ["2"]) as stream:
        found = [infer(triton, "lstm", x[:2], 2, start=True), stream.ask([0], x[None, 2:4]).y[0]]
        shutil.copytree(models / "lstm/1", models / "lstm/2")
        triton.load_model("lstm")
        assert list(triton.get_model_metadata("lstm").versions) == ["2"]
        found.append(infer(triton, "lstm", x[4:], 2))
    np.testing.assert_allclose(np.concatenate(found), LSTM.whole(x), **CLOSE)


def test_a_version_that_is_refused_leaves_the_one_that_is_served(triton: InferenceServerClient, models: Path):
    x = LSTM.draw(2, 2)
    first = infer(triton, "lstm", x[:1], 3, start=True)
    (models / "lstm/2").mkdir()
    (models / "lstm/2/model.onnx").write_bytes(b"this is no model")
    with refused("INVALID_ARGUMENT") as caught:
        triton.load_model("lstm")
    assert caught.value.message().startswith("failed to load 'lstm': ")
    np.testing.assert_allclose(np.concatenate([first, infer(triton, "lstm", x[1:], 3)]), LSTM.whole(x), **CLOSE)


def test_what_a_client_would_change_of_a_model_is_refused(triton: InferenceServerClient):
    with refused("INVALID_ARGUMENT"):
        triton.load_model("lstm", config="{}")


def test_a_server_allows_it_only_where_it_was_told_to(models: Path, start_server: StartServer):
    with InferenceServerClient(start_server(models=models).address) as client:
        for change in (client.load_model, client.unload_model):
            with refused("UNAVAILABLE") as caught:
                change("lstm")
            assert isinstance(reason(caught.value), Unimplemented)
        assert client.is_model_ready("lstm")
