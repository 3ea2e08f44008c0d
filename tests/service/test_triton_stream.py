"""ModelStreamInfer: models and sequences mixed, replies in the order of the requests, errors among them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException

from tests.conftest import StartServer
from tests.service.caller import Caller
from tests.service.processes import ServerProcess
from tests.service.tritons import TIMEOUT_SECONDS, Streaming, step
from tests.service.zoo import CLOSE, MODELS

LSTM, GRU = MODELS["lstm"], MODELS["gru"]


@pytest.fixture
def stream(server: ServerProcess) -> Iterator[Streaming]:
    with Streaming(server.address) as stream:
        yield stream


def test_replies_come_in_the_order_of_the_requests(stream: Streaming, session: str):
    x = LSTM.draw(0, 40)
    for at, row in enumerate(x):
        stream.send("lstm", row[None], session, start=not at, end=at == 39, request_id=str(at))
    replies = [stream.reply() for _ in x]
    assert [reply.get_response().id for reply in replies] == [str(at) for at in range(40)]
    np.testing.assert_allclose(np.concatenate([r.as_numpy("y")[0] for r in replies]), LSTM.whole(x), **CLOSE)
    final = [reply.get_response().parameters["triton_final_response"].bool_param for reply in replies]
    assert final == [True] * 40


def test_a_stream_mixes_models_and_sequences(stream: Streaming, session: str):
    xs = {(name, which): MODELS[name].draw(which, 6) for name in ("lstm", "gru") for which in range(8)}
    for t in range(6):
        for (name, which), x in xs.items():
            stream.send(name, x[t : t + 1], f"{session} {which}", start=not t)
    replies: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in xs}
    for _ in range(6):
        for key in xs:
            replies[key].append(stream.y())
    for (name, which), found in replies.items():
        np.testing.assert_allclose(np.concatenate(found), MODELS[name].whole(xs[name, which]), **CLOSE)


def test_an_error_is_told_in_its_place_and_the_stream_goes_on(stream: Streaming, session: str):
    x = LSTM.draw(1, 2)
    stream.send("lstm", x[:1], session, start=True)
    stream.send("lstm", x[:1], f"{session} of nobody")
    stream.send("nobody", x[:1], session)
    stream.send("lstm", x[:1, :2], session)
    stream.send("lstm", x[1:], session)
    np.testing.assert_allclose(stream.y(), LSTM.whole(x)[:1], **CLOSE)
    for words in ("must specify the START flag", "Request for unknown model: 'nobody'", "not float32 of shape"):
        with pytest.raises(InferenceServerException, match=words):
            stream.reply()
    np.testing.assert_allclose(stream.y(), LSTM.whole(x)[1:], **CLOSE)


def test_steps_read_before_bytes_that_are_no_message_are_answered(caller: Caller, session: str):
    """Again and again: a reply may be on its way out just then, and the stream must not wait for it for ever."""
    call = caller.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    for _ in range(60):
        replies = call(iter([b"", b"\xff"]), timeout=10)
        next(replies)
        with pytest.raises(grpc.RpcError) as refused:
            next(replies)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_asyncio_client_gets_the_same_and_a_half_closed_stream_is_finished(
    server: ServerProcess, session: str
):
    x = LSTM.draw(2, 12)

    async def requests():
        for at, row in enumerate(x):
            yield {
                "model_name": "lstm",
                "inputs": step("lstm", row[None]),
                "sequence_id": session,
                "sequence_start": not at,
            }

    async with aio.InferenceServerClient(server.address) as client:
        found = []
        async with asyncio.timeout(TIMEOUT_SECONDS):
            async for result, error in client.stream_infer(requests()):
                assert error is None
                found.append(result.as_numpy("y")[0])
    np.testing.assert_allclose(np.concatenate(found), LSTM.whole(x), **CLOSE)


async def test_the_asyncio_client_steps_many_sequences_at_once(server: ServerProcess):
    xs = [LSTM.draw(seed, 6) for seed in range(30)]

    async def sequence(client: aio.InferenceServerClient, number: int) -> np.ndarray:
        found = [
            await client.infer(
                "lstm",
                step("lstm", xs[number][t : t + 2]),
                sequence_id=9000 + number,
                sequence_start=not t,
                sequence_end=t == 4,
                client_timeout=TIMEOUT_SECONDS,
            )
            for t in (0, 2, 4)
        ]
        return np.concatenate([each.as_numpy("y")[0] for each in found])

    async with aio.InferenceServerClient(server.address) as client:
        told = await asyncio.gather(*(sequence(client, number) for number in range(30)))
    for x, found in zip(xs, told, strict=True):
        np.testing.assert_allclose(found, LSTM.whole(x), **CLOSE)


def test_a_server_told_to_stop_answers_what_it_read_and_ends_the_stream(start_server: StartServer):
    server = start_server()
    x = LSTM.draw(3, 4)
    with Streaming(server.address) as stream:
        for at, row in enumerate(x):
            stream.send("lstm", row[None], 1, start=not at)
        found = [stream.y() for _ in x]
        assert server.stop() == 0
        with pytest.raises(InferenceServerException) as caught:
            stream.reply()
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    np.testing.assert_allclose(np.concatenate(found), LSTM.whole(x), **CLOSE)
