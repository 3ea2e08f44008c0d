"""What is lost on the way, a server or a store that dies: each operation applies once, against real servers."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import redis

from recurra.client import (
    AlreadyApplied,
    AsyncClient,
    Client,
    DataLoss,
    DeadlineExceeded,
    Diverged,
    Overloaded,
    SessionNotFound,
    Unreachable,
)
from recurra.server.store import record
from tests.client.faulty import Faulty
from tests.service.processes import store_client
from tests.service.zoo import CLOSE, MODELS

AWAY = Unreachable, DeadlineExceeded  # the last attempt of a call may run out of time

LSTM = MODELS["lstm"]
X = LSTM.draw(20, 12)
SCRIPTS = ["x", "<", "<<", "x<x<", ".<", ".x<", "..<.x"]


@pytest.mark.parametrize("script", SCRIPTS)
async def test_predicts_apply_once(aclient: AsyncClient, faulty: Faulty, session: str, script: str) -> None:
    handle = aclient.session("lstm", session)
    faulty.script.extend(script)
    outputs = [await handle.predict(one) for one in X]
    np.testing.assert_allclose(outputs, LSTM.whole(X), **CLOSE)
    assert handle.position == 12


@pytest.mark.parametrize("script", SCRIPTS)
async def test_a_session_that_is_there_is_continued_once(
    aclient: AsyncClient, faulty: Faulty, session: str, script: str
) -> None:
    await aclient.session("lstm", session).predict(X[:4])
    faulty.script.extend(script)
    handle = aclient.session("lstm", session)
    outputs = [await handle.predict(one) for one in X[4:]]
    np.testing.assert_allclose(outputs, LSTM.whole(X)[4:], **CLOSE)


@pytest.mark.parametrize("script", SCRIPTS)
async def test_resets_sets_and_ends_apply_once(aclient: AsyncClient, faulty: Faulty, session: str, script: str) -> None:
    handle = aclient.session("lstm", session)
    await handle.predict(X)
    states = await handle.state()
    for operation in (handle.reset, lambda: handle.set_state(states), handle.end):
        faulty.script.extend(script)
        await operation()
        faulty.script.clear()
    np.testing.assert_allclose(await handle.predict(X), LSTM.whole(X), **CLOSE)
    assert handle.created


async def test_asking_again_after_time_ran_out_is_a_retry(aclient: AsyncClient, faulty: Faulty, session: str) -> None:
    handle = aclient.session("lstm", session)
    outputs = []
    for one in X:
        faulty.script.extend("<" * 40)
        with pytest.raises(AWAY):
            await handle.predict(one, timeout=0.05)
        faulty.script.clear()
        outputs.append(await handle.predict(one))
    np.testing.assert_allclose(outputs, LSTM.whole(X), **CLOSE)
    assert handle.position == 12


async def test_after_time_ran_out_something_else_continues_what_was_applied(
    aclient: AsyncClient, faulty: Faulty, session: str
) -> None:
    handle = aclient.session("lstm", session)
    await handle.predict(X[:1])
    for lost, position in (("<", 3), ("x", 4)):
        faulty.script.extend(lost * 40)
        with pytest.raises(AWAY):
            await handle.predict(X[1], timeout=0.05)
        faulty.script.clear()
        await handle.predict(X[2])
        assert handle.position == position


async def test_a_cancelled_predict_can_be_asked_again(aclient: AsyncClient, session: str) -> None:
    handle = aclient.session("lstm", session)
    await handle.predict(X[:2])
    for delay in (0, 0.0005, 0.001, 0.002, 0.004):
        task = asyncio.create_task(handle.predict(X[2]))
        try:
            await asyncio.wait_for(task, delay)
        except TimeoutError:
            await handle.predict(X[2])
        await handle.predict(X[3])
        position = handle.position
        assert position == (await handle.info()).position
        await handle.reset()
        await handle.predict(X[:2])
        assert position == 4


@pytest.mark.parametrize("script", SCRIPTS)
async def test_frames_apply_once(aclient: AsyncClient, faulty: Faulty, session: str, script: str) -> None:
    batch = aclient.batch("lstm", [f"{session} {row}" for row in range(5)])
    xs = np.stack([LSTM.draw(row, 6) for row in range(5)])
    faulty.script.extend(script)
    outputs = [await batch.predict(xs[:, t]) for t in range(6)]
    np.testing.assert_allclose(np.stack(outputs, 1), [LSTM.whole(x) for x in xs], **CLOSE)
    assert batch.position.tolist() == [6] * 5
    faulty.script.clear()
    faulty.script.extend(script)
    await batch.reset()
    np.testing.assert_allclose(await batch.predict(xs), [LSTM.whole(x) for x in xs], **CLOSE)


async def test_a_frame_asked_again_after_time_ran_out_is_a_retry(
    aclient: AsyncClient, faulty: Faulty, session: str
) -> None:
    batch = aclient.batch("lstm", [f"{session} {row}" for row in range(5)])
    xs = np.stack([LSTM.draw(row, 6) for row in range(5)])
    outputs = []
    for t in range(6):
        faulty.script.extend(("<" if t % 2 else "x") * 40)
        with pytest.raises(AWAY):
            await batch.predict(xs[:, t], timeout=0.05)
        faulty.script.clear()
        outputs.append(await batch.predict(xs[:, t]))
    np.testing.assert_allclose(np.stack(outputs, 1), [LSTM.whole(x) for x in xs], **CLOSE)


async def test_a_reset_of_a_batch_asked_again_applies_once(aclient: AsyncClient, faulty: Faulty, session: str) -> None:
    batch = aclient.batch("lstm", [f"{session} {row}" for row in range(3)])
    xs = np.stack([LSTM.draw(row, 6) for row in range(3)])
    await batch.predict(xs)
    faulty.script.extend("<" * 40)
    with pytest.raises(AWAY):
        await batch.reset(timeout=0.05)
    faulty.script.clear()
    await batch.reset()  # whether the first came through or not
    np.testing.assert_allclose(await batch.predict(xs), [LSTM.whole(x) for x in xs], **CLOSE)
    assert batch.position.tolist() == [6] * 3


@pytest.mark.parametrize("cut_after", range(12))
async def test_a_pipelined_stream_that_is_cut_resumes_or_tells_which_reply_is_lost(
    aclient: AsyncClient, faulty: Faulty, session: str, cut_after: int
) -> None:
    handle = aclient.session("lstm", session)
    faulty.cut_after = cut_after
    outputs = []
    try:
        async for output in handle.stream(list(X), in_flight=4):
            outputs.append(output)  # noqa: PERF401 - what came before the error counts
    except AlreadyApplied:
        at = (await handle.info()).position
        assert at > len(outputs)
        outputs = [*LSTM.whole(X)[:at], *[await handle.predict(one) for one in X[at:]]]
    np.testing.assert_allclose(outputs, LSTM.whole(X), **CLOSE)
    assert handle.position == 12


async def test_somebody_else_within_a_pipelined_stream_is_told(aclient: AsyncClient, session: str) -> None:
    handle, other = aclient.session("lstm", session), aclient.session("lstm", session)
    stream = handle.stream([*X, *X, *X], in_flight=3)
    await anext(stream)
    await other.predict(X[0])  # it continues whatever is there
    with pytest.raises(Diverged):
        await _drain(stream)


async def _drain(stream) -> None:
    async for _ in stream:
        pass


async def test_a_replica_that_is_away_is_left_for_the_next(server, session: str) -> None:
    async with AsyncClient(["127.0.0.1:1", server.address]) as client:
        handle = client.session("lstm", session)
        np.testing.assert_allclose(await handle.predict(X), LSTM.whole(X), **CLOSE)
        ys = [y async for y in handle.stream(list(X), in_flight=2)]
        assert len(ys) == 12


async def test_nobody_answers(session: str) -> None:
    async with AsyncClient("127.0.0.1:1", timeout=0.3) as client:
        with pytest.raises(Unreachable):
            await client.session("lstm", session).predict(X)


class Full:
    """A channel to a server whose queues are full for some calls."""

    def __init__(self, channel, times: int) -> None:
        self.channel, self.times = channel, times

    async def call(self, method, request, *, timeout):  # noqa: ASYNC109 - the seam has timeouts
        self.times -= 1
        if self.times >= 0:
            raise Overloaded("full", retry_after=0.01)
        return await self.channel.call(method, request, timeout=timeout)

    async def close(self) -> None:
        await self.channel.close()


async def test_full_queues_are_waited_for(faulty: Faulty) -> None:
    async with AsyncClient(channels=[Full(faulty, 3)]) as client:
        assert await client.models()


def record_of(server, session: str) -> tuple[redis.Redis, bytes]:
    """The store, and the key of a session's record in it."""
    prefix, identity = record.key_prefix("default", "lstm"), record.identity("default", "lstm", session)
    return store_client(server.store_socket), record.key(prefix, identity)


async def test_the_window_replays_what_the_store_lost(aclient: AsyncClient, server, session: str) -> None:
    """The store goes back in time, as after a failover."""
    handle = aclient.session("lstm", session)
    await handle.predict(X[:2])
    await handle.predict(X[2:4])
    store, key = record_of(server, session)
    with store:
        early = store.get(key)
        await handle.predict(X[4:6])
        await handle.predict(X[6:8])
        store.set(key, early, px=60_000)
    np.testing.assert_allclose(await handle.predict(X[8:]), LSTM.whole(X)[8:], **CLOSE)


async def test_the_window_of_a_batch_replays_what_the_store_lost(aclient: AsyncClient, server, session: str) -> None:
    ids = [f"{session} {row}" for row in range(4)]
    batch = aclient.batch("lstm", ids)
    xs = np.stack([LSTM.draw(row, 12) for row in range(4)])
    await batch.predict(xs[:, :2])
    await batch.predict(xs[:, 2:4])
    store, key = record_of(server, ids[2])
    with store:
        early = store.get(key)
        await batch.predict(xs[:, 4:6])
        await batch.predict(xs[:, 6:8], lengths=[2, 1, 2, 0])
        store.set(key, early, px=60_000)
    y = await batch.predict(xs[:, 8:])
    np.testing.assert_allclose(y[2], LSTM.whole(xs[2])[8:], **CLOSE)
    np.testing.assert_allclose(y[3], LSTM.whole(xs[3, :6], xs[3, 8:])[6:], **CLOSE)


def test_a_server_killed_in_mid_stream_is_replaced_by_another(start_server, valkey, session: str) -> None:
    servers = [start_server(store=valkey.url) for _ in range(2)]
    with Client([one.address for one in servers]) as client:
        handle = client.session("lstm", session)
        batch = client.batch("lstm", [f"{session} {row}" for row in range(3)])
        outputs, rows = [], []
        for t, one in enumerate(X):
            if t == 5:
                servers[0].kill()
            outputs.append(handle.predict(one))
            rows.append(batch.predict(np.stack([one] * 3)))
        np.testing.assert_allclose(outputs, LSTM.whole(X), **CLOSE)
        for row in range(3):
            np.testing.assert_allclose([y[row] for y in rows], LSTM.whole(X), **CLOSE)


def test_a_store_that_comes_back_empty_is_told(start_server, valkey, session: str) -> None:
    with Client(start_server(store=valkey.url).address) as client:
        handle = client.session("lstm", session)
        handle.predict(X)
        with store_client(valkey.socket) as store:
            store.flushall()
        with pytest.raises((DataLoss, SessionNotFound)):
            handle.predict(X)
        handle.follow()
        handle.predict(X)
        assert handle.created
