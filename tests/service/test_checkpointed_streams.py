"""Checkpointed streams of the SDK over killed and suspended replicas: nothing acknowledged is lost or applied twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from redis.asyncio import Redis

from recurra.client import AsyncClient, Client, Diverged, RecurraError, StoreFull
from recurra.client.grpc_channel import GrpcChannel
from tests.client.faulty import Faulty
from tests.conftest import StartServer
from tests.service.caller import Caller
from tests.service.processes import ServerProcess, ValkeyProcess
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
K, T = 16, 120
NAMES = [f"s{row}" for row in range(K)]
XS = np.stack([LSTM.draw(row, T) for row in range(K)])
WHOLE = np.stack([LSTM.whole(x) for x in XS])


@pytest.fixture
def replicas(start_server: StartServer, valkey: ValkeyProcess) -> Iterator[list[ServerProcess]]:
    """Two, which write so late that what is acknowledged is not in the store when they are killed."""
    return [start_server("--checkpoint-seconds", "20", store=valkey.url) for _ in range(2)]


def addresses(replicas: list[ServerProcess]) -> list[str]:
    return [each.address for each in replicas]


def positions(replica: ServerProcess, names: list[str] = NAMES) -> list[int]:
    """Where the store has the sessions."""
    with Caller(replica.address) as caller:
        return [caller.get("lstm", name).position for name in names]


@pytest.mark.parametrize("seed", range(4))
async def test_a_replica_killed_at_any_time_under_many_tasks(replicas: list[ServerProcess], seed: int) -> None:
    rng = np.random.default_rng(seed)
    kill_at, answered, found = int(rng.integers(K, K * T)), 0, {}
    async with AsyncClient(addresses(replicas)) as client:

        async def one(row: int) -> None:
            nonlocal answered
            ys, at = [], 0
            while at < T:
                length = min(int(rng.integers(1, 4)), T - at)
                ys.append(await stream.predict(NAMES[row], XS[row, at : at + length]))
                at, answered = at + length, answered + length
                if answered >= kill_at and not killed:
                    killed.append(answered)
                    replicas[0].kill()
            found[row] = np.concatenate(ys)

        killed: list[int] = []
        async with client.stream("lstm", durability="checkpointed") as stream:
            await asyncio.gather(*map(one, range(K)))
    assert killed
    np.testing.assert_allclose([found[row] for row in range(K)], WHOLE, **CLOSE)
    assert positions(replicas[1]) == [T] * K


def test_what_a_killed_replica_had_not_written_is_replayed(replicas: list[ServerProcess]) -> None:
    with Client(addresses(replicas)) as client, client.stream("lstm", durability="checkpointed") as stream:

        def steps(begin: int, end: int) -> np.ndarray:
            found: dict[str, list] = {name: [] for name in NAMES}
            pairs = ((name, XS[row, t]) for t in range(begin, end) for row, name in enumerate(NAMES))
            for name, y in stream.map(pairs):
                found[name].append(y)
            return np.array([found[name] for name in NAMES])

        ys = [steps(0, 70)]
        replicas[0].kill()
        assert max(positions(replicas[1])) < 70
        ys.append(steps(70, T))
        np.testing.assert_allclose(np.concatenate(ys, 1), WHOLE, **CLOSE)
        assert max(positions(replicas[1])) == T


def test_a_stream_that_is_closed_has_left_all_in_the_store(replicas: list[ServerProcess]) -> None:
    with Client(addresses(replicas)) as client:
        with client.stream("lstm", durability="checkpointed") as stream:
            for _ in stream.map((name, XS[row, t]) for t in range(20) for row, name in enumerate(NAMES)):
                pass
        replicas[0].kill()
        assert positions(replicas[1]) == [20] * K


def test_a_closed_stream_replays_first_what_was_lost(replicas: list[ServerProcess]) -> None:
    with Client(addresses(replicas)) as client:
        with client.stream("lstm", durability="checkpointed") as stream:
            for _ in stream.map((name, XS[row, t]) for t in range(20) for row, name in enumerate(NAMES)):
                pass
            replicas[0].kill()
            assert max(positions(replicas[1])) < 20
        assert positions(replicas[1]) == [20] * K


def test_the_window_forgets_nothing_that_is_not_durable(replicas: list[ServerProcess]) -> None:
    """Half of the sessions rest while the others fill the window many times over."""
    with (
        Client(addresses(replicas), window_bytes=40_000) as client,
        client.stream("lstm", durability="checkpointed") as stream,
    ):
        ys = {name: [] for name in NAMES}

        def steps(rows: range, begin: int, end: int) -> None:
            for name, y in stream.map((NAMES[row], XS[row, t]) for t in range(begin, end) for row in rows):
                ys[name].append(y)

        steps(range(K), 0, 5)
        steps(range(K // 2), 5, 90)
        replicas[0].kill()
        at = positions(replicas[1])
        assert at[K // 2 :] == [5] * (K // 2)
        assert min(at) < 90
        steps(range(K // 2), 90, T)
        steps(range(K // 2, K), 5, T)
        np.testing.assert_allclose([ys[name] for name in NAMES], WHOLE, **CLOSE)


async def test_a_stream_that_is_closed_secures_a_session_with_an_operation_in_doubt(
    replicas: list[ServerProcess],
) -> None:
    channels = [Faulty(GrpcChannel(each.address)) for each in replicas]
    async with AsyncClient(channels=channels) as client:
        stream = client.stream("lstm", durability="checkpointed")
        for t in range(5):
            await asyncio.gather(*map(stream.predict, NAMES, XS[:, t]))
        replicas[0].kill()
        for faulty in channels:
            faulty.script.extend("x" * 400)
        with pytest.raises(RecurraError):
            await stream.predict(NAMES[0], XS[0, 5], timeout=0.1)
        for faulty in channels:
            faulty.script.clear()
        await stream.close()
    assert positions(replicas[1]) == [5] * K


async def test_a_stream_that_could_not_be_closed_as_the_store_was_full_is_closed_later(
    replicas: list[ServerProcess], valkey: ValkeyProcess
) -> None:
    async with AsyncClient(addresses(replicas)) as client, Redis.from_url(valkey.url) as redis:
        stream = client.stream("lstm", durability="checkpointed")
        for t in range(5):
            await asyncio.gather(*map(stream.predict, NAMES, XS[:, t]))
        await redis.config_set("maxmemory", 1)
        replicas[0].kill()
        with pytest.raises(StoreFull):
            await stream.close()
        await redis.config_set("maxmemory", 0)
        await stream.close()
    assert positions(replicas[1]) == [5] * K


async def test_an_operation_in_doubt_does_not_hold_up_the_others(replicas: list[ServerProcess]) -> None:
    faulty = Faulty(GrpcChannel(replicas[0].address))
    async with (
        AsyncClient(channels=[faulty], window_bytes=40_000) as client,
        client.stream("lstm", durability="checkpointed") as stream,
    ):
        for t in range(5):
            await asyncio.gather(*map(stream.predict, NAMES, XS[:, t]))
        faulty.script.extend("<" * 40)
        with pytest.raises(RecurraError):
            await stream.predict(NAMES[0], XS[0, 5], timeout=0.1)
        faulty.script.clear()
        found = [await asyncio.gather(*map(stream.predict, NAMES[1:], XS[1:, t])) for t in range(5, 105)]
        np.testing.assert_allclose(np.stack(found, 1), WHOLE[1:, 5:105], **CLOSE)
        np.testing.assert_allclose(await stream.predict(NAMES[0], XS[0, 5]), WHOLE[0, 5], **CLOSE)


def test_a_batch_outlives_a_replica(replicas: list[ServerProcess]) -> None:
    with Client(addresses(replicas)) as client:
        batch = client.batch("lstm", NAMES, durability="checkpointed")
        ys = [batch.predict(XS[:, t]) for t in range(40)]
        assert batch.durable_position.max() < 40
        replicas[0].kill()
        ys += [batch.predict(XS[:, t]) for t in range(40, 80)]
        np.testing.assert_allclose(np.stack(ys, 1), WHOLE[:, :80], **CLOSE)
        batch.close()
        assert batch.durable_position.tolist() == positions(replicas[1]) == [80] * K


@pytest.mark.parametrize("in_flight", [1, 4])
def test_a_sessions_stream_outlives_a_replica(replicas: list[ServerProcess], in_flight: int) -> None:
    """With several in flight a lost reply may be that of an operation that was replayed with those after it."""
    with Client(addresses(replicas)) as client:
        handle = client.session("lstm", "s0")

        def chunks() -> Iterator[np.ndarray]:
            for t, x in enumerate(XS[0]):
                if t == 60:
                    replicas[0].kill()
                yield x

        ys = list(handle.stream(chunks(), in_flight=in_flight, durability="checkpointed"))
        np.testing.assert_allclose(ys, WHOLE[0], **CLOSE)
        assert handle.position == handle.durable_position == T
        assert positions(replicas[1], ["s0"]) == [T]


async def test_an_owner_that_slept_while_another_took_over_is_fenced(replicas: list[ServerProcess]) -> None:
    zombie, other = replicas
    async with AsyncClient(zombie.address, timeout=60) as first, AsyncClient(other.address) as second:
        old = first.stream("lstm", durability="checkpointed")
        for t in range(10):
            await asyncio.gather(*(old.predict(name, XS[row, t]) for row, name in enumerate(NAMES)))
        late = [asyncio.create_task(old.predict(name, XS[row, 10])) for row, name in enumerate(NAMES)]
        zombie.signal(signal.SIGSTOP)
        stood = [(await second.session("lstm", name).info()).position for name in NAMES]
        assert max(stood) < 10
        async with second.stream("lstm", durability="checkpointed") as new:
            ys = [
                await asyncio.gather(*(new.predict(name, XS[row, t]) for row, name in enumerate(NAMES)))
                for t in range(20, 30)
            ]
            zombie.signal(signal.SIGCONT)
            await asyncio.gather(*late, return_exceptions=True)
            with pytest.raises(RecurraError):  # it may say once more yes, before it learns that it is fenced
                await old.close()
            told = await asyncio.gather(
                *(old.predict(name, XS[row, 11]) for row, name in enumerate(NAMES)), return_exceptions=True
            )
            assert {type(error) for error in told} == {Diverged}
            ys += [
                await asyncio.gather(*(new.predict(name, XS[row, t]) for row, name in enumerate(NAMES)))
                for t in range(30, 40)
            ]
    expected = [LSTM.whole(x[:at], x[20:40])[at:] for x, at in zip(XS, stood, strict=True)]
    np.testing.assert_allclose(np.stack(ys, 1), expected, **CLOSE)
    assert positions(other) == [at + 20 for at in stood]


def test_a_session_of_a_stream_can_be_reset_by_the_side(replicas: list[ServerProcess]) -> None:
    with Client(replicas[0].address) as client, client.stream("lstm", durability="checkpointed") as stream:
        for x in XS[0, :10]:
            stream.predict("s0", x)
        client.session("lstm", "s0").reset()
        with pytest.raises(RecurraError) as caught:
            stream.predict("s0", XS[0, 0])
        assert caught.value.reason == "RESET"
        stream.follow("s0")
        np.testing.assert_allclose(stream.predict("s0", XS[0, 0]), WHOLE[0, 0], **CLOSE)
