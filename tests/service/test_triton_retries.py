"""Sequences over Triton's protocol that outlive their server, and requests that come twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from recurra.wire.errors import AlreadyApplied, Diverged, SessionClosed, SessionExpired
from tests.conftest import StartServer
from tests.models import graphs
from tests.service.caller import Caller
from tests.service.conftest import key
from tests.service.processes import ServerProcess, ValkeyProcess, eventually, free_address, store_client
from tests.service.tritons import infer, reason, refused
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]


@pytest.fixture(scope="module")
def by_id(tmp_path_factory: pytest.TempPathFactory):
    """A client of a server whose model takes a request's id for its operation's; and its other API's."""
    models = tmp_path_factory.mktemp("models")
    graphs.write(LSTM.built, models, "lstm")
    (models / "lstm/model.toml").write_text("retry_by_id = true\n")
    process = ServerProcess(models, tmp_path_factory.mktemp("data"))
    try:
        address = process.start().address
        with InferenceServerClient(address) as client, Caller(address) as caller:
            yield client, caller
    finally:
        process.close()


def test_a_request_that_comes_twice_is_two_steps(server: ServerProcess, session: str):
    x = LSTM.draw(0, 2)
    with InferenceServerClient(server.address) as client:
        replies = [infer(client, "lstm", x, session, request_id="same", start=not at) for at in range(2)]
    np.testing.assert_allclose(np.concatenate(replies), LSTM.whole(x, x), **CLOSE)


def test_where_ids_count_a_request_that_comes_twice_is_one_step(by_id, session: str):
    client, caller = by_id
    x = LSTM.draw(1, 3)
    first = [infer(client, "lstm", x[:1], session, request_id="a", start=True) for _ in range(2)]
    second = [infer(client, "lstm", x[1:2], session, request_id="b") for _ in range(2)]
    last = [infer(client, "lstm", x[2:], session, request_id="c", end=True) for _ in range(2)]
    for replies in (first, second, last):
        np.testing.assert_array_equal(*replies)
    np.testing.assert_allclose(np.concatenate([first[0], second[0], last[0]]), LSTM.whole(x), **CLOSE)
    with pytest.raises(SessionClosed):
        caller.get("lstm", session)


def test_where_ids_count_other_input_under_one_id_has_diverged(by_id, session: str):
    client, caller = by_id
    x = LSTM.draw(2, 3)
    infer(client, "lstm", x[:1], session, request_id="a", start=True)
    infer(client, "lstm", x[1:2], session, request_id="b")
    for changed in ({}, {"end": True}, {"start": True}):
        given = x[2:] if not changed else x[1:2]
        with refused("ABORTED") as caught:
            infer(client, "lstm", given, session, request_id="b", **changed)
        assert isinstance(reason(caught.value), Diverged)
    with refused("ALREADY_EXISTS") as caught:
        infer(client, "lstm", x[:1], session, request_id="a", start=True)
    assert isinstance(reason(caught.value), AlreadyApplied)
    assert caller.get("lstm", session).position == 2


def test_where_ids_count_a_request_without_one_is_a_new_step(by_id, session: str):
    client, _ = by_id
    x = LSTM.draw(3, 1)
    replies = [infer(client, "lstm", x, session, start=not at) for at in range(3)]
    np.testing.assert_allclose(np.concatenate(replies), LSTM.whole(x, x, x), **CLOSE)


def test_a_sequence_goes_on_after_its_server_was_killed(start_server: StartServer):
    server, x = start_server("--listen", free_address()), LSTM.draw(4, 9)
    with InferenceServerClient(server.address) as client:
        found = [infer(client, "lstm", x[:3], 7, start=True)]
        server.kill()
        server.start()
        eventually(lambda: _live(client))
        found += [infer(client, "lstm", x[3:6], "7")]
        server.kill()
        server.start()
        eventually(lambda: _live(client))
        found += [infer(client, "lstm", x[6:], 7, end=True)]
    np.testing.assert_allclose(np.concatenate(found), LSTM.whole(x), **CLOSE)


def test_two_servers_serve_one_sequence_in_turn(start_server: StartServer, valkey: ValkeyProcess):
    servers = [start_server(store=valkey.url) for _ in range(2)]
    x, found = LSTM.draw(5, 10), []
    with InferenceServerClient(servers[0].address) as one, InferenceServerClient(servers[1].address) as other:
        for at, row in enumerate(x):
            client = (one, other)[at % 2]
            found.append(infer(client, "lstm", row[None], "in turn", start=not at, end=at == 9))
        with refused("INVALID_ARGUMENT"):
            infer(one, "lstm", x, "in turn")
        again = [infer(one, "lstm", x[:5], "in turn", start=True), infer(other, "lstm", x[5:], "in turn")]
    for replies in (found, again):
        np.testing.assert_allclose(np.concatenate(replies), LSTM.whole(x), **CLOSE)


def test_an_idle_sequence_expires_and_then_wants_a_start(tmp_path: Path, start_server: StartServer):
    graphs.write(LSTM.built, tmp_path, "lstm")
    (tmp_path / "lstm/model.toml").write_text("session_ttl = 1\n")
    server, x = start_server(models=tmp_path), LSTM.draw(6, 1)
    with InferenceServerClient(server.address) as client, store_client(server.store_socket) as store:
        infer(client, "lstm", x, 1, start=True)
        told = client.get_model_config("lstm").config.sequence_batching
        assert told.max_sequence_idle_microseconds == 1_000_000
        eventually(lambda: not store.exists(key("lstm", "1")))
        with refused("INVALID_ARGUMENT") as caught:
            infer(client, "lstm", x, 1)
        assert "must specify the START flag" in caught.value.message()
        assert isinstance(reason(caught.value), SessionExpired)
        np.testing.assert_allclose(infer(client, "lstm", x, 1, start=True), LSTM.whole(x), **CLOSE)


def _live(client: InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_live())
    except InferenceServerException:
        return False
