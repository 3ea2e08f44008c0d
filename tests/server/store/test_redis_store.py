import asyncio
import os
import signal

import numpy as np
import pytest

from recurra.server.store import record
from recurra.server.store.commit import APPLIED, DUPLICATE
from recurra.server.store.record import HEADER
from recurra.server.store.sessions import RedisStore
from recurra.wire.errors import DataLoss, StoreUnavailable


async def listed(store: RedisStore, prefix: bytes, count: int) -> dict[bytes, bytes]:
    """A whole scan. A key may come more than once."""
    found: dict[bytes, bytes] = {}
    cursor = 0
    while True:
        cursor, some = await store.scan(prefix, cursor, count)
        found |= dict(some)
        if not cursor:
            return found


@pytest.mark.parametrize("count", [1, 7, 1000])
async def test_a_scan_lists_its_prefix_and_nothing_else(sessions, redis, rows, commit, count):
    mine = rows(40)
    others = [
        rows(5, prefix=record.key_prefix(tenant, model))
        for tenant, model in [("t", "m2"), ("t", "n"), ("u", "m"), ("t", "M"), ("t", "model")]
    ]
    for batch in (mine, *others):
        assert await commit(sessions, batch) == [APPLIED] * len(batch)
    await redis.set("something else", "x")
    found = await listed(sessions, record.key_prefix("t", "m"), count)
    assert found.keys() == {mine.key(row) for row in range(40)}
    for row in range(40):
        head = found[mine.key(row)]
        assert head[: HEADER.itemsize] == mine.expected[row].tobytes()
        assert head[HEADER.itemsize :].startswith(mine.names[row].encode())


async def test_a_scan_of_nothing_ends(sessions):
    assert await listed(sessions, b"recurra:t:nothing:", 10) == {}


async def test_a_scan_passes_over_what_is_no_record(sessions, redis, rows, commit):
    batch = rows(2)
    await commit(sessions, batch)
    await redis.sadd(record.key_prefix("t", "m") + b"{}", "a set")
    assert (await listed(sessions, record.key_prefix("t", "m"), 10)).keys() == {batch.key(0), batch.key(1)}


async def test_what_is_not_there_is_read_as_none(sessions, rows, commit):
    batch = rows(4)
    assert await sessions.read(batch.keys) == [None] * 4
    await commit(sessions, batch)
    assert None not in await sessions.read(batch.keys)


async def test_a_read_sees_every_commit_that_was_sent_before_it(sessions, rows):
    batch = rows(16)
    for _ in range(20):
        records = batch.next()
        committing = asyncio.ensure_future(sessions.commit(batch.keys, batch.before, records, batch.ttl_ms))
        await asyncio.wait([committing], timeout=0)  # it is sent now, and not answered
        read = await sessions.read(batch.keys)
        assert [data[: HEADER.itemsize] for data in read] == [head.tobytes() for head in batch.expected]
        assert await committing == [APPLIED] * 16


async def test_commands_are_observed_by_name(sessions, observed, rows, commit):
    batch = rows()
    await commit(sessions, batch)
    await sessions.read(batch.keys)
    assert observed == ["commit", "read"]


async def test_commits_in_flight_survive_kill_9_of_the_store_each_applied_once(sessions, valkey, redis, rows):
    await redis.config_set("appendfsync", "always")
    batch = rows(8)
    for round_ in range(3):
        flights = []
        for at in range(10):
            records = batch.next()
            flights.append(asyncio.ensure_future(sessions.commit(batch.keys, batch.before, records, batch.ttl_ms)))
            if at == 4:
                await asyncio.wait(flights, timeout=0.002, return_when=asyncio.FIRST_COMPLETED)
        os.kill(valkey.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*flights)
        # A commit that was applied and sent again finds itself, or a later one of ours, which was applied too.
        ours = {answer for flight in answers for answer in flight if isinstance(answer, bytes)}
        assert all(answer in (APPLIED, DUPLICATE) or isinstance(answer, bytes) for f in answers for answer in f)
        assert all(np.frombuffer(head, HEADER)["position"][0] > 10 * round_ for head in ours)
        read = await sessions.read(batch.keys)
        assert [data[: HEADER.itemsize] for data in read] == [head.tobytes() for head in batch.expected]
        assert {int(position) for position in batch.expected["position"]} == {10 * (round_ + 1)}


async def test_a_stuck_store_is_unavailable_for_every_call(valkey, rows, stuck):
    store = RedisStore(valkey.url, timeout_seconds=0.2, observe=lambda *_: None)
    batch = rows(2)
    try:
        await store.ping()
        with stuck():
            results = await asyncio.gather(
                store.commit(batch.keys, batch.expected, batch.next(), batch.ttl_ms),
                store.read(batch.keys),
                store.scan(b"recurra:", 0, 10),
                store.ping(),
                return_exceptions=True,
            )
        assert [type(result) for result in results] == [StoreUnavailable] * 4
        await store.ping()
        assert await store.scan(b"nothing", 0, 10) == (0, [])
    finally:
        await store.close()


async def test_a_refusal_of_the_store_is_told_in_its_own_words(sessions, redis, rows, commit):
    await redis.config_set("maxmemory", 0)
    await redis.acl_setuser(
        "default", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-get", "-scan", "-ping"]
    )
    batch = rows(2)
    try:
        assert await commit(sessions, batch) == [APPLIED] * 2
        for refused in await sessions.read(batch.keys):
            assert isinstance(refused, StoreUnavailable)
            assert "NOPERM" in str(refused)
        with pytest.raises(StoreUnavailable, match="NOPERM"):
            await sessions.scan(b"recurra:", 0, 10)
        with pytest.raises(StoreUnavailable, match="NOPERM"):
            await sessions.ping()
    finally:
        await redis.acl_setuser("default", enabled=True, nopass=True, keys=["*"], commands=["+@all"])


async def test_a_wrong_type_is_data_loss_of_that_session_alone(sessions, redis, rows, commit):
    batch = rows(3)
    await commit(sessions, batch)
    await redis.delete(batch.key(1))
    await redis.lpush(batch.key(1), "a list")
    first, second, third = await sessions.read(batch.keys)
    assert isinstance(second, DataLoss)
    assert record.unpack(first, batch.identities[0]).name == batch.names[0]
    assert record.unpack(third, batch.identities[2]).name == batch.names[2]
