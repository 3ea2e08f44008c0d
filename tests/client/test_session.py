"""A session's handle, against a real server."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from recurra.client import (
    AsyncClient,
    Client,
    Diverged,
    InvalidArgument,
    ModelNotFound,
    ModelUnavailable,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionNotFound,
    StateReset,
)
from tests.service.processes import eventually
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]


@pytest.mark.parametrize("name", MODELS)
def test_state_carries_over_from_call_to_call(client: Client, session: str, name: str) -> None:
    model = MODELS[name]
    x = model.draw(0, 9)
    handle = client.session(name, session)
    outputs = [handle.predict(x[:4]), handle.predict(x[4])[None], handle.predict(x[5:])]
    np.testing.assert_allclose(np.concatenate(outputs), model.whole(x), **CLOSE)
    assert handle.position == handle.durable_position == 9
    assert len(handle.incarnation) == 16


def test_a_handle_tells_where_its_session_stands(client: Client, session: str) -> None:
    handle = client.session("lstm", session)
    assert (handle.position, handle.created, handle.incarnation, handle.expire_time) == (None, None, None, None)
    handle.predict(LSTM.draw(0, 3))
    assert handle.created
    handle.predict(LSTM.draw(0, 3), ttl=60)
    assert not handle.created
    assert timedelta(seconds=0) < handle.expire_time - datetime.now(UTC) <= timedelta(seconds=60)
    info = handle.info()
    assert (info.model, info.session, info.position, info.incarnation) == ("lstm", session, 6, handle.incarnation)


def test_a_stateless_prediction_starts_fresh(client: Client) -> None:
    x = LSTM.draw(1, 5)
    for _ in range(2):
        np.testing.assert_allclose(client.predict("lstm", x), LSTM.whole(x), **CLOSE)


def test_what_can_be_asked_with_a_prediction(client: Client, session: str) -> None:
    x = LSTM.draw(2, 6)
    handle = client.session("lstm", session)
    y, states = handle.predict(x[:3], return_states=True)
    assert {name: state.shape for name, state in states.items()} == {"lstm_1/h": (1, 6), "lstm_1/c": (1, 6)}
    np.testing.assert_allclose(y, LSTM.whole(x[:3]), **CLOSE)
    np.testing.assert_allclose(handle.predict(x[3:], commit=False), LSTM.whole(x)[3:], **CLOSE)
    assert handle.position == 3
    np.testing.assert_allclose(handle.predict(x[3:], return_sequences=False), LSTM.whole(x)[-1], **CLOSE)
    np.testing.assert_allclose(handle.predict(x[3:], initial_state=states), LSTM.whole(x)[3:], **CLOSE)
    assert handle.position == 3


def test_a_mask_passes_over_timesteps(client: Client, session: str) -> None:
    x, mask = LSTM.draw(3, 5), np.array([False, True, True, False, True])
    y = client.session("lstm", session).predict(x, mask=mask)
    whole = LSTM.whole(x[mask])
    np.testing.assert_allclose(y, [[0, 0], whole[0], whole[1], whole[1], whole[2]], **CLOSE)


def test_reset_wholly_by_layer_by_state_and_to_values(client: Client, session: str) -> None:
    x = LSTM.draw(4, 3)
    handle = client.session("lstm", session)
    fresh = handle.predict(x)
    for names in ((), ("lstm_1",), ("lstm_1/h", "lstm_1/c")):
        handle.reset(*names)
        assert handle.position == 0
        np.testing.assert_array_equal(handle.predict(x), fresh)
    states = handle.state()
    after = handle.predict(x)
    handle.reset(values=states)
    np.testing.assert_array_equal(handle.predict(x), after)
    handle.reset("lstm_1/h")
    assert not handle.state()["lstm_1/h"].any()
    assert handle.state()["lstm_1/c"].any()


def test_set_state_sets_some_and_leaves_the_others(client: Client, session: str) -> None:
    handle = client.session("lstm", session)
    handle.predict(LSTM.draw(5, 3))
    cell = handle.state()["lstm_1/c"]
    handle.set_state({"lstm_1/h": np.full((1, 6), 0.5)})
    assert handle.position == 0
    states = handle.state()
    assert (states["lstm_1/h"] == 0.5).all()
    np.testing.assert_array_equal(states["lstm_1/c"], cell)


def test_an_ended_session_is_gone_and_its_handle_begins_a_new_life(client: Client, session: str) -> None:
    x = LSTM.draw(6, 3)
    handle = client.session("lstm", session)
    fresh = handle.predict(x)
    first = handle.incarnation
    handle.end()
    with pytest.raises(SessionClosed):
        handle.info()
    with pytest.raises(SessionClosed):
        handle.end()
    np.testing.assert_array_equal(handle.predict(x), fresh)
    assert handle.created
    assert handle.incarnation != first


def test_what_a_first_operation_does_about_a_missing_session(client: Client, session: str) -> None:
    x = LSTM.draw(7, 1)
    must = client.session("lstm", session, create="must_exist")
    for operation in (lambda: must.predict(x), must.reset, must.end, must.info, must.state):
        with pytest.raises(SessionNotFound):
            operation()
    client.session("lstm", session, create="must_be_new").predict(x)
    with pytest.raises(SessionExists) as caught:
        client.session("lstm", session, create="must_be_new").predict(x)
    assert caught.value.position == 1
    must.predict(x)
    assert must.position == 2
    with pytest.raises(InvalidArgument):
        client.session("lstm", session, create="perhaps")


def test_two_handles_notice_each_other_and_can_follow(client: Client, session: str) -> None:
    x = LSTM.draw(8, 1)
    one, other = client.session("lstm", session), client.session("lstm", session)
    one.predict(x)
    other.predict(x)
    with pytest.raises(Diverged) as caught:
        one.predict(x)
    assert caught.value.position == 2
    one.follow()
    one.predict(x)
    assert one.position == 3
    other.follow()
    other.reset()
    with pytest.raises(StateReset):
        one.predict(x)
    one.follow()
    one.predict(x)
    assert one.position == 1


def test_bad_input_consumes_nothing(client: Client, session: str) -> None:
    handle = client.session("lstm", session)
    handle.predict(LSTM.draw(9, 2))
    for x in (np.zeros((2, 4)), {"z": [1, 2, 3]}, [["a"]], np.full((1, 3), np.nan)):
        with pytest.raises(InvalidArgument):
            handle.predict(x)
    handle.predict(LSTM.draw(9, 2))
    assert handle.position == 4


def test_models(client: Client) -> None:
    models = {model.name: model for model in client.models()}
    assert models.keys() == {*MODELS, "broken"}
    assert str(models["lstm"].inputs[0]) == "x float32 (T, 3)"
    assert [(state.name, state.layer) for state in models["lstm"].states] == [
        ("lstm_1/h", "lstm_1"),
        ("lstm_1/c", "lstm_1"),
    ]
    assert client.model("gru").self_test.batched
    with pytest.raises(ModelNotFound):
        client.model("none")
    with pytest.raises(ModelUnavailable):
        client.predict("broken", [1])


def test_sessions_are_listed_over_all_pages(client: Client, session: str) -> None:
    ids = {f"{session} {row}" for row in range(230)}
    client.batch("gru", sorted(ids)).predict(np.zeros((230, 3)))
    assert ids <= {info.session for info in client.sessions("gru")}


def test_one_client_serves_many_threads(client: Client, session: str) -> None:
    x = LSTM.draw(10, 8)

    def run(number: int) -> np.ndarray:
        handle = client.session("lstm", f"{session} {number}")
        return np.stack([handle.predict(one) for one in x])

    with ThreadPoolExecutor(8) as pool:
        for y in pool.map(run, range(8)):
            np.testing.assert_allclose(y, LSTM.whole(x), **CLOSE)


@pytest.mark.parametrize("in_flight", [1, 4])
def test_a_stream_of_chunks(client: Client, session: str, in_flight: int) -> None:
    x = LSTM.draw(11, 20)
    handle = client.session("lstm", session)
    chunks = iter([x[:3], x[3], x[4:9], *x[9:]])
    first, second, third, *rest = handle.stream(chunks, in_flight=in_flight)
    np.testing.assert_allclose(np.concatenate([first, [second], third, rest]), LSTM.whole(x), **CLOSE)
    assert handle.position == 20


def test_a_stream_takes_chunks_in_the_callers_thread_which_may_call_the_client(client: Client, session: str) -> None:
    x = LSTM.draw(12, 5)
    threads = set()

    def chunks():
        for one in x:
            threads.add(threading.current_thread())
            client.predict("lstm", one)
            yield one

    outputs = list(client.session("lstm", session).stream(chunks()))
    np.testing.assert_allclose(outputs, LSTM.whole(x), **CLOSE)
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_stream_that_is_left_early_can_be_continued(client: Client, session: str, in_flight: int) -> None:
    x = LSTM.draw(13, 12)
    handle = client.session("lstm", session)
    stream = handle.stream(iter(x), in_flight=in_flight)
    for _ in range(3):
        next(stream)
    stream.close()
    handle.predict(x[0], commit=False)
    at = handle.info().position
    assert 3 <= at <= 3 + in_flight
    np.testing.assert_allclose(handle.predict(x[at:]), LSTM.whole(x)[at:], **CLOSE)


def test_within_a_pipelined_stream_the_handle_is_taken(client: Client, session: str) -> None:
    x = LSTM.draw(14, 6)
    handle = client.session("lstm", session)
    stream = handle.stream(iter(x), in_flight=2)
    next(stream)
    for operation in (lambda: handle.predict(x), handle.reset, handle.follow):
        with pytest.raises(InvalidArgument, match="use another handle"):
            operation()
    assert len(list(stream)) == 5
    handle.predict(x)


def test_an_expired_session_is_told(client: Client, session: str) -> None:
    x = LSTM.draw(15, 1)
    handle = client.session("lstm", session, ttl=0.02)
    handle.predict(x)
    eventually(lambda: session not in {info.session for info in client.sessions("lstm")})
    with pytest.raises(SessionExpired):
        handle.predict(x)
    handle.follow()
    handle.predict(x)
    assert handle.created


def test_what_a_source_of_chunks_raises_reaches_the_caller(client: Client, session: str) -> None:
    def chunks():
        yield LSTM.draw(0, 1)
        raise LookupError("no more")

    for in_flight in (1, 2):
        with pytest.raises(LookupError, match="no more"):
            list(client.session("lstm", f"{session} {in_flight}").stream(chunks(), in_flight=in_flight))


def test_a_closed_client_can_be_closed_again(server) -> None:
    client = Client(server.address)
    client.models()
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.models()


async def test_a_pipelined_stream_gives_outputs_while_its_source_has_nothing(
    aclient: AsyncClient, session: str
) -> None:
    x = LSTM.draw(16, 4)
    given: asyncio.Queue[np.ndarray | None] = asyncio.Queue()

    async def chunks():
        while (one := await given.get()) is not None:
            yield one

    stream = aclient.session("lstm", session).stream(chunks(), in_flight=4)
    for one, y in zip(x, LSTM.whole(x), strict=True):
        given.put_nowait(one)
        np.testing.assert_allclose(await asyncio.wait_for(anext(stream), 5), y, **CLOSE)
    await stream.aclose()
