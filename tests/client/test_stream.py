"""A stream of many sessions, against a real server."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from recurra.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    Diverged,
    InvalidArgument,
    RecurraError,
    RunFailed,
    SessionExists,
    SessionNotFound,
    StateReset,
    Unreachable,
)
from recurra.client.dispatch import MAX_ASKED
from tests.client.faulty import Faulty
from tests.client.test_faults import SCRIPTS, record_of
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
K, T = 12, 6


@pytest.fixture
def ids(session: str) -> list[str]:
    return [f"{session} {row}" for row in range(K)]


def draw(timesteps: int = T, name: str = "lstm") -> np.ndarray:
    return np.stack([MODELS[name].draw(row, timesteps) for row in range(K)])


def whole(xs: np.ndarray, name: str = "lstm") -> np.ndarray:
    return np.stack([MODELS[name].whole(x) for x in xs])


def pairs(ids: list[str], xs: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """One timestep of each session after the other."""
    return [(name, xs[row, t]) for t in range(xs.shape[1]) for row, name in enumerate(ids)]


async def one_by_one(stream, name: str, x: np.ndarray) -> np.ndarray:
    return np.stack([await stream.predict(name, step) for step in x])


def by_session(outputs) -> dict[str, list]:
    found: dict[str, list] = {}
    for name, y in outputs:
        found.setdefault(name, []).append(y)
    return found


@pytest.mark.parametrize("name", MODELS)
async def test_tasks_that_each_have_a_session(aclient: AsyncClient, ids: list[str], name: str) -> None:
    xs = draw(name=name)
    async with aclient.stream(name) as stream:
        ys = await asyncio.gather(*map(one_by_one, [stream] * K, ids, xs))
    np.testing.assert_allclose(ys, whole(xs, name), **CLOSE)
    assert (await aclient.session(name, ids[3]).info()).position == T


async def test_those_who_come_together_share_frames(aclient: AsyncClient, faulty: Faulty, ids: list[str]) -> None:
    async with aclient.stream("lstm", linger=5) as stream:
        await asyncio.gather(*map(one_by_one, [stream] * K, ids, draw()))
    assert faulty.rows == [K] * T
    assert faulty.asked == ["StreamPredict"]


async def test_one_alone_waits_for_nobody(aclient: AsyncClient, faulty: Faulty, session: str) -> None:
    async with aclient.stream("lstm", linger=1000) as stream:
        await one_by_one(stream, session, LSTM.draw(0, 4))
    assert faulty.rows == [1] * 4


async def test_a_map_of_many_sessions(aclient: AsyncClient, faulty: Faulty, ids: list[str]) -> None:
    xs = draw()

    async def waiting():
        for pair in pairs(ids, xs):
            await asyncio.sleep(0)
            yield pair

    async with aclient.stream("lstm") as stream:
        for source in (pairs(ids, xs), waiting()):
            found = by_session([pair async for pair in stream.map(source)])
            np.testing.assert_allclose([found[name] for name in ids], whole(xs), **CLOSE)
            for name in ids:
                await aclient.session("lstm", name).reset()
                await stream.follow(name)
    assert max(faulty.rows) == K


async def test_chunks_of_several_lengths(aclient: AsyncClient, ids: list[str]) -> None:
    xs, rng = draw(20), np.random.default_rng(5)
    cuts = [np.sort(rng.choice(np.arange(1, 20), 4, replace=False)) for _ in ids]
    chunks = [np.split(x, cut) for x, cut in zip(xs, cuts, strict=True)]
    interleaved = [(name, chunks[row][at]) for at in range(5) for row, name in enumerate(ids)]
    async with aclient.stream("lstm") as stream:
        found = by_session([pair async for pair in stream.map(interleaved)])
    np.testing.assert_allclose([np.concatenate(found[name]) for name in ids], whole(xs), **CLOSE)
    async with aclient.stream("lstm", return_sequences=False) as stream:
        lasts = await asyncio.gather(
            *(stream.predict(f"{name}!", x[: row + 1]) for row, (name, x) in enumerate(zip(ids, xs, strict=True)))
        )
    np.testing.assert_allclose(lasts, whole(xs)[np.arange(K), np.arange(K)], **CLOSE)


async def test_the_input_is_taken_when_it_is_given(aclient: AsyncClient, ids: list[str]) -> None:
    buffer, xs = np.empty(3, np.float32), draw(1)

    def reusing():
        for name, x in pairs(ids, xs):
            buffer[:] = x
            yield name, buffer

    async with aclient.stream("lstm") as stream:
        found = by_session([pair async for pair in stream.map(reusing())])
    np.testing.assert_allclose([found[name] for name in ids], whole(xs), **CLOSE)


async def test_bad_input_of_one_harms_no_other(aclient: AsyncClient, ids: list[str]) -> None:
    xs = draw(2)
    bad = xs[:, 0].copy()
    bad[4, 1] = np.nan
    async with aclient.stream("lstm") as stream:
        first = await asyncio.gather(*map(stream.predict, ids, bad), return_exceptions=True)
        assert isinstance(first[4], InvalidArgument)
        first[4] = await stream.predict(ids[4], xs[4, 0])
        with pytest.raises(InvalidArgument, match="shape"):
            await stream.predict(ids[4], np.zeros(7))
        second = await asyncio.gather(*map(stream.predict, ids, xs[:, 1]))
    np.testing.assert_allclose(np.stack([first, second], 1), whole(xs), **CLOSE)


async def test_asking_again_alone_what_was_padded_beside_a_longer_chunk_is_a_retry(
    aclient: AsyncClient, faulty: Faulty, ids: list[str]
) -> None:
    xs = draw(5)
    async with aclient.stream("lstm") as stream:
        await asyncio.gather(*map(stream.predict, ids[:2], xs[:2, 0]))
        faulty.script.extend("<" * 40)
        asked = [stream.predict(ids[0], xs[0, 1:4], timeout=0.1), stream.predict(ids[1], xs[1, 1:5], timeout=0.1)]
        for error in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(error, RecurraError)
        faulty.script.clear()
        again = await stream.predict(ids[0], xs[0, 1:4])
        np.testing.assert_allclose(again, LSTM.whole(xs[0, :4])[1:], **CLOSE)
        np.testing.assert_allclose(await stream.predict(ids[1], xs[1, 1:5]), LSTM.whole(xs[1])[1:], **CLOSE)


async def test_an_input_that_the_model_fails_on_harms_no_other(aclient: AsyncClient, ids: list[str]) -> None:
    xs = draw(2, "picky")
    bad = xs[:, 0].copy()
    bad[2, 0] = 2000
    async with aclient.stream("picky") as stream:
        first = await asyncio.gather(*map(stream.predict, ids, bad), return_exceptions=True)
        assert isinstance(first[2], RunFailed)
        first[2] = await stream.predict(ids[2], xs[2, 0])
        second = await asyncio.gather(*map(stream.predict, ids, xs[:, 1]))
    np.testing.assert_allclose(np.stack([first, second], 1), whole(xs, "picky"), **CLOSE)


async def test_in_a_map_a_session_stops_at_its_error_until_it_is_followed(aclient: AsyncClient, ids: list[str]) -> None:
    xs = draw(4)
    bad = xs.copy()
    bad[5, 1] = np.nan
    wrong = [*pairs(ids, bad), (ids[6], np.zeros(9)), (ids[6], xs[6, 0])]
    async with aclient.stream("lstm") as stream:
        found = by_session([pair async for pair in stream.map(wrong)])
        for row, name in enumerate(ids):
            good = found[name][: 1 if row == 5 else 4]
            np.testing.assert_allclose(good, whole(xs)[row, : len(good)], **CLOSE)
        assert [type(y) for y in found[ids[5]][1:]] == [InvalidArgument] * 3
        assert [type(y) for y in found[ids[6]][4:]] == [InvalidArgument] * 2

        async def following():
            yield ids[5], np.full(3, np.nan)
            await first.wait()
            await stream.follow(ids[5])
            for x in xs[5, 1:]:
                yield ids[5], x

        told, first = [], asyncio.Event()
        async for _, y in stream.map(following()):
            told.append(y)
            first.set()
    np.testing.assert_allclose(told[1:], whole(xs)[5, 1:], **CLOSE)


async def test_what_others_do_to_a_session_is_told_and_can_be_followed(aclient: AsyncClient, ids: list[str]) -> None:
    xs = draw(4)
    one, other = aclient.session("lstm", ids[0]), aclient.session("lstm", ids[1])
    async with aclient.stream("lstm") as stream:
        await asyncio.gather(*map(stream.predict, ids, xs[:, 0]))
        await one.reset()
        await other.predict(xs[1, 1])
        ys = await asyncio.gather(*map(stream.predict, ids, xs[:, 2]), return_exceptions=True)
        assert [type(y) for y in ys[:2]] == [StateReset, Diverged]
        np.testing.assert_allclose(ys[2:], [LSTM.whole(x[[0, 2]])[1] for x in xs[2:]], **CLOSE)
        await stream.follow(ids[0])
        await stream.follow(ids[1])
        np.testing.assert_allclose(await stream.predict(ids[0], xs[0, 2]), LSTM.whole(xs[0, 2:])[0], **CLOSE)
        np.testing.assert_allclose(await stream.predict(ids[1], xs[1, 2]), LSTM.whole(xs[1])[2], **CLOSE)
        await aclient.session("lstm", ids[0]).follow()


async def test_sessions_that_must_exist_or_be_new(aclient: AsyncClient, ids: list[str]) -> None:
    xs = draw(2)
    await aclient.session("lstm", ids[0]).predict(xs[0, 0])
    async with aclient.stream("lstm", create="must_exist") as stream:
        ys = await asyncio.gather(*map(stream.predict, ids, xs[:, 1]), return_exceptions=True)
        np.testing.assert_allclose(ys[0], LSTM.whole(xs[0])[1], **CLOSE)
        assert {type(y) for y in ys[1:]} == {SessionNotFound}
    async with aclient.stream("lstm", create="must_be_new") as stream:
        ys = await asyncio.gather(*map(stream.predict, ids, xs[:, 0]), return_exceptions=True)
        assert isinstance(ys[0], SessionExists)
        np.testing.assert_allclose(ys[1:], [LSTM.whole(x)[0] for x in xs[1:]], **CLOSE)


@pytest.mark.parametrize("script", SCRIPTS)
async def test_predicts_of_a_stream_apply_once(
    aclient: AsyncClient, faulty: Faulty, ids: list[str], script: str
) -> None:
    xs = draw()
    async with aclient.stream("lstm") as stream:
        faulty.script.extend(script)
        ys = await asyncio.gather(*map(one_by_one, [stream] * K, ids, xs))
        np.testing.assert_allclose(ys, whole(xs), **CLOSE)
        faulty.script.extend(script)
        found = by_session([pair async for pair in stream.map(pairs(ids, xs))])
    expected = [LSTM.whole(x, x)[T:] for x in xs]
    np.testing.assert_allclose([found[name] for name in ids], expected, **CLOSE)


@pytest.mark.parametrize("seed", range(6))
async def test_many_frames_on_their_way_over_a_stream_that_breaks_all_the_time(
    aclient: AsyncClient, faulty: Faulty, ids: list[str], seed: int
) -> None:
    rng, xs = np.random.default_rng(seed), draw(40)
    faulty.script.extend(rng.choice(list("x<.."), 60).tolist())

    async def one(name: str, x: np.ndarray) -> np.ndarray:
        ys = []
        for step in x:
            await asyncio.sleep(rng.random() / 500)
            ys.append(await stream.predict(name, step))
            if rng.random() < 0.02:
                faulty.cut_after = int(rng.integers(3))
        return np.stack(ys)

    async with aclient.stream("lstm", linger=0) as stream:
        ys = await asyncio.gather(*map(one, ids, xs))
    np.testing.assert_allclose(ys, whole(xs), **CLOSE)


async def test_asking_again_after_time_ran_out_is_a_retry(aclient: AsyncClient, faulty: Faulty, ids: list[str]) -> None:
    xs, ys = draw(), []
    async with aclient.stream("lstm") as stream:
        for t in range(T):
            faulty.script.extend(("<" if t % 2 else "x") * 40)
            late = [stream.predict(name, x, timeout=0.05) for name, x in zip(ids, xs[:, t], strict=True)]
            errors = await asyncio.gather(*late, return_exceptions=True)
            assert {type(error) for error in errors} <= {Unreachable, DeadlineExceeded}
            faulty.script.clear()
            ys.append(await asyncio.gather(*map(stream.predict, ids, xs[:, t])))
    np.testing.assert_allclose(np.stack(ys, 1), whole(xs), **CLOSE)


async def test_a_cancelled_predict_harms_no_other_and_can_be_asked_again(aclient: AsyncClient, ids: list[str]) -> None:
    xs, ys = draw(), []
    async with aclient.stream("lstm") as stream:
        for t, delay in enumerate((0, 0.0005, 0.001, 0.002, 0.003, 0.004)):
            tasks = [asyncio.create_task(stream.predict(name, xs[row, t])) for row, name in enumerate(ids)]
            await asyncio.sleep(delay)
            for task in tasks[::2]:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            cut = [row for row, y in enumerate(found) if isinstance(y, asyncio.CancelledError)]
            assert set(cut) <= set(range(0, K, 2))
            for row, y in zip(cut, await asyncio.gather(*(stream.predict(ids[r], xs[r, t]) for r in cut)), strict=True):
                found[row] = y
            ys.append(found)
    np.testing.assert_allclose(np.stack(ys, 1), whole(xs), **CLOSE)


async def test_a_cancelled_predict_that_is_not_asked_again_is_left_behind(aclient: AsyncClient, session: str) -> None:
    x = LSTM.draw(0, 3)
    async with aclient.stream("lstm") as stream:
        await stream.predict(session, x[0])
        task = asyncio.create_task(stream.predict(session, x[1]))
        await asyncio.sleep(0.002)
        task.cancel()
        y = await stream.predict(session, x[2])
        position = (await aclient.session("lstm", session).info()).position
    expected = LSTM.whole(x)[2] if position == 3 else LSTM.whole(x[[0, 2]])[1]
    np.testing.assert_allclose(y, expected, **CLOSE)


async def test_the_window_of_a_stream_replays_what_the_store_lost(aclient: AsyncClient, server, ids: list[str]) -> None:
    """The store goes back in time with one session, as after a failover; frames have other rows each time."""
    xs, ys = draw(), [[] for _ in ids]
    rng = np.random.default_rng(0)
    store, key = record_of(server, ids[2])
    async with aclient.stream("lstm") as stream:
        with store:
            for t in range(T - 1):
                for some in np.array_split(rng.permutation(K), 3):
                    outputs = await asyncio.gather(*(stream.predict(ids[row], xs[row, t]) for row in some))
                    for row, y in zip(some, outputs, strict=True):
                        ys[row].append(y)
                if t == 1:
                    early = store.get(key)
            store.set(key, early, px=60_000)
        last = await asyncio.gather(*map(stream.predict, ids, xs[:, -1]))
    np.testing.assert_allclose([[*y, z] for y, z in zip(ys, last, strict=True)], whole(xs), **CLOSE)


async def test_a_map_that_is_left_early_sends_no_more(aclient: AsyncClient, session: str) -> None:
    x = LSTM.draw(0, 50)
    async with aclient.stream("lstm") as stream:
        outputs = stream.map((session, step) for step in x)
        np.testing.assert_allclose((await anext(outputs))[1], LSTM.whole(x)[0], **CLOSE)
        await outputs.aclose()
        await stream.close()
        position = (await aclient.session("lstm", session).info()).position
        assert position < 50
        rest = [y async for _, y in stream.map((session, step) for step in x[position:])]
    np.testing.assert_allclose(rest, LSTM.whole(x)[position:], **CLOSE)


async def test_what_a_map_took_is_answered_before_its_source_fails(aclient: AsyncClient, ids: list[str]) -> None:
    def failing():
        yield from pairs(ids, draw(2))
        raise ValueError("the source")

    found = []

    async def drain(outputs) -> None:
        async for pair in outputs:
            found.append(pair)  # noqa: PERF401 - what came before the error counts

    async with aclient.stream("lstm") as stream:
        with pytest.raises(ValueError, match="the source"):
            await drain(stream.map(failing()))
    np.testing.assert_allclose([by_session(found)[name] for name in ids], whole(draw(2)), **CLOSE)


async def test_outputs_come_while_the_source_has_nothing(aclient: AsyncClient, ids: list[str]) -> None:
    more = asyncio.Event()

    async def slow():
        for pair in pairs(ids, draw(2)):
            yield pair
            if pair[0] == ids[-1]:
                await more.wait()

    async with aclient.stream("lstm") as stream:
        outputs = stream.map(slow())
        found = [await anext(outputs) for _ in ids]
        more.set()
        found += [pair async for pair in outputs]
    np.testing.assert_allclose([by_session(found)[name] for name in ids], whole(draw(2)), **CLOSE)


async def test_an_endless_source_is_taken_no_faster_than_it_is_answered(aclient: AsyncClient, ids: list[str]) -> None:
    taken = 0

    def endless():
        nonlocal taken
        while True:
            for name in ids:
                taken += 1
                yield name, np.ones(3)

    async with aclient.stream("gru") as stream:
        outputs, answered = stream.map(endless()), 0
        async for _ in outputs:
            answered += 1
            assert taken <= answered + MAX_ASKED + 1
            if answered == 2 * MAX_ASKED:
                break
        await outputs.aclose()


async def test_many_callers_are_taken_as_there_is_room(aclient: AsyncClient, session: str) -> None:
    count = MAX_ASKED + 1000
    async with aclient.stream("gru", linger=0) as stream:
        ys = await asyncio.gather(*(stream.predict(f"{session} {n % 3000}", np.ones(3)) for n in range(count)))
    assert len(ys) == count


def test_a_stream_outlives_a_replica(start_server, valkey, ids: list[str]) -> None:
    servers, xs = [start_server(store=valkey.url) for _ in range(2)], draw(60)
    with Client([one.address for one in servers]) as client, client.stream("lstm") as stream:
        found: dict[str, list] = {name: [] for name in ids}
        for number, (name, y) in enumerate(stream.map(pairs(ids, xs))):
            found[name].append(y)
            if number == 10:
                servers[0].kill()
        np.testing.assert_allclose([found[name] for name in ids], whole(xs), **CLOSE)


def test_threads_that_each_have_a_session(client: Client, ids: list[str]) -> None:
    xs = draw()
    with client.stream("lstm") as stream, ThreadPoolExecutor(K) as threads:

        def one(name: str, x: np.ndarray) -> np.ndarray:
            return np.stack([stream.predict(name, step) for step in x])

        ys = list(threads.map(one, ids, xs))
    np.testing.assert_allclose(ys, whole(xs), **CLOSE)


def test_a_blocking_map_takes_pairs_in_the_callers_thread(client: Client, ids: list[str]) -> None:
    xs, threads = draw(100), set()

    def source():
        for pair in pairs(ids, xs):
            threads.add(threading.get_ident())
            yield pair

    with client.stream("lstm") as stream:
        found = by_session(stream.map(source()))
    np.testing.assert_allclose([found[name] for name in ids], whole(xs), **CLOSE)
    assert threads == {threading.get_ident()}


def test_a_blocking_map_that_is_left_early_or_whose_source_fails(client: Client, ids: list[str]) -> None:
    def failing():
        yield from pairs(ids, draw(1))
        raise ValueError("the source")

    with client.stream("lstm") as stream:
        outputs = stream.map(pairs(ids, draw()))
        assert next(outputs)[0] in ids
        outputs.close()
        with pytest.raises(ValueError, match="the source"):
            list(stream.map(failing()))
        with pytest.raises(InvalidArgument):
            client.stream("lstm", linger=-1)


async def test_a_stream_that_is_left_by_an_error_gives_up_what_is_on_its_way(
    aclient: AsyncClient, session: str
) -> None:
    x = LSTM.draw(0, 2)
    stream = aclient.stream("lstm")
    await stream.predict(session, x[0])

    async def failing() -> None:
        async with stream:
            tasks.append(asyncio.create_task(stream.predict(session, x[1])))
            await asyncio.sleep(0)
            raise ValueError

    tasks: list[asyncio.Task] = []
    with pytest.raises(ValueError):  # noqa: PT011 - raised above
        await failing()
    with pytest.raises(RecurraError) as caught:
        await tasks[0]
    assert caught.value.retryable
    np.testing.assert_allclose(await stream.predict(session, x[1]), LSTM.whole(x)[1], **CLOSE)
    await stream.close()


async def test_a_closed_client_is_told(server, session: str) -> None:
    client = AsyncClient(server.address)
    stream = client.stream("lstm")
    await stream.predict(session, np.ones(3))
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await stream.predict(session, np.ones(3))
    with pytest.raises(RuntimeError, match="closed"):
        [pair async for pair in stream.map([(session, np.ones(3))])]
