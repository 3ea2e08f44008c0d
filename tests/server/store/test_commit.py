import asyncio
from itertools import chain

import hiredis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.server.store import commit as commit_commands
from recurra.server.store import record
from recurra.server.store.commit import APPLIED, DUPLICATE, MISSING, SCRIPT, SHA, commands, reads
from recurra.server.store.record import HEADER
from recurra.server.store.sessions import RedisStore
from recurra.wire.errors import DataLoss, StoreFull
from tests.proxy import Proxy

NOTHING = np.zeros(3, HEADER)


@given(st.integers(0, 150), st.integers(1, 90), st.integers(0, 300), st.data())
def test_commands_are_the_bytes_that_hiredis_would_pack(rows, key_bytes, record_bytes, data):
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    keys = random.integers(0, 256, (rows, key_bytes), np.uint8)
    records = random.integers(0, 256, (rows, record_bytes), np.uint8)
    expected = np.frombuffer(random.bytes(rows * HEADER.itemsize), HEADER)
    ttl_ms = np.array(data.draw(st.lists(st.integers(0, 10**13 - 1), min_size=rows, max_size=rows)), np.int64)
    wires, read = commands(keys, expected, records, ttl_ms), reads(keys)
    for at, (wire, count, _) in zip(range(0, rows, 64), wires, strict=True):
        some = range(at, min(rows, at + 64))
        assert count == len(some)
        names = [keys[row].tobytes() for row in some]
        arguments = [(expected[row].tobytes(), records[row].tobytes(), b"%013d" % ttl_ms[row]) for row in some]
        assert wire.tobytes() == hiredis.pack_command(("EVALSHA", SHA, len(some), *names, *chain(*arguments)))
    for row in range(rows):
        assert read[row].tobytes() == hiredis.pack_command((b"GET", keys[row].tobytes()))


def test_large_records_go_few_at_a_time():
    records = np.zeros((5, 400_000), np.uint8)
    wires = commands(np.zeros((5, 8), np.uint8), np.zeros(5, HEADER), records, np.zeros(5, np.int64))
    assert [rows for _, rows, _ in wires] == [2, 2, 1]


async def test_the_store_names_the_script_as_we_do(redis):
    assert (await redis.script_load(SCRIPT)) == SHA.decode()


async def test_a_session_that_is_not_there_is_created_where_nothing_is_expected(sessions, redis, rows, commit):
    batch = rows()
    assert await commit(sessions, batch) == [APPLIED] * 3
    for row, identity in enumerate(batch.identities):
        there = await redis.get(batch.key(row))
        read = record.unpack(there, identity)
        assert read.name == batch.names[row]
        assert read.header[0] == batch.expected[row]


async def test_each_commit_takes_the_place_of_the_one_before(sessions, redis, rows, commit):
    batch = rows()
    for _ in range(5):
        assert await commit(sessions, batch) == [APPLIED] * 3
    found = await sessions.read(batch.keys)
    assert [
        record.unpack(data, who).header["position"][0] for data, who in zip(found, batch.identities, strict=True)
    ] == [
        5,
        5,
        5,
    ]


async def test_the_same_record_again_is_a_duplicate_and_changes_nothing(sessions, redis, rows, commit):
    batch = rows()
    await commit(sessions, batch)
    records = batch.next()
    assert await sessions.commit(batch.keys, batch.before, records, batch.ttl_ms) == [APPLIED] * 3
    assert await sessions.commit(batch.keys, batch.before, records, batch.ttl_ms) == [DUPLICATE] * 3
    assert await redis.get(batch.key(0)) == records[0].tobytes()
    # Also where it was a create: then nothing is expected.
    assert await sessions.commit(batch.keys, NOTHING, records, batch.ttl_ms) == [DUPLICATE] * 3


async def test_a_session_that_is_gone_is_never_created_anew(sessions, redis, rows, commit):
    batch = rows()
    await commit(sessions, batch)
    await redis.delete(batch.key(1))
    assert await commit(sessions, batch) == [APPLIED, MISSING, APPLIED]
    assert not await redis.exists(batch.key(1))


async def test_a_conflict_answers_with_the_header_that_is_there(sessions, redis, rows, commit):
    batch, other = rows(), rows()
    await commit(sessions, batch)
    winners = batch.expected.copy()
    before = [await redis.get(batch.key(row)) for row in range(3)]
    assert await commit(sessions, other) == [head.tobytes() for head in winners]  # to create what exists
    stale = winners.copy()
    stale["commit"][:, 1] ^= 1  # equal but for the random id of the commit: a history rolled back
    assert await commit(sessions, batch, expected=stale) == [head.tobytes() for head in winners]
    assert [await redis.get(batch.key(row)) for row in range(3)] == before


async def test_no_field_of_the_header_may_differ(sessions, rows, commit):
    batch = rows(1)
    await commit(sessions, batch)
    there = batch.expected.copy()
    for at in range(HEADER.itemsize):
        stale = bytearray(there.tobytes())
        stale[at] ^= 128
        records = batch.next()
        answers = await sessions.commit(batch.keys, np.frombuffer(stale, HEADER), records, batch.ttl_ms)
        assert answers == [there.tobytes()], at
    batch.expected = there
    assert await commit(sessions, batch) == [APPLIED]


async def test_two_writers_from_one_header_have_one_winner(sessions, redis, rows, commit):
    batch = rows(8)
    await commit(sessions, batch)
    base = batch.expected.copy()
    first = batch.next()
    batch.expected = base
    second = batch.next()
    answers = await asyncio.gather(
        sessions.commit(batch.keys, base, first, batch.ttl_ms), sessions.commit(batch.keys, base, second, batch.ttl_ms)
    )
    assert answers[0] == [APPLIED] * 8
    assert answers[1] == [first[row, : HEADER.itemsize].tobytes() for row in range(8)]


async def test_the_time_to_live_is_set_and_a_duplicate_refreshes_it(sessions, redis, rows, commit):
    batch = rows()
    batch.ttl_ms[:] = [30_000, 3_600_000, 10 * 365 * 86_400_000]
    await commit(sessions, batch)
    records = batch.next()
    for _ in range(2):
        await sessions.commit(batch.keys, batch.before, records, batch.ttl_ms)
        for row, ttl in enumerate(batch.ttl_ms.tolist()):
            assert ttl - 10_000 < await redis.pttl(batch.key(row)) <= ttl
            await redis.persist(batch.key(row))


async def test_one_bad_key_fails_alone(sessions, redis, rows, commit):
    batch = rows(5)
    await commit(sessions, batch)
    await redis.delete(batch.key(2))
    await redis.sadd(batch.key(2), "not a record")
    answers = await commit(sessions, batch)
    assert [answer for row, answer in enumerate(answers) if row != 2] == [APPLIED] * 4
    assert isinstance(answers[2], DataLoss)
    found = await sessions.read(batch.keys)
    assert isinstance(found[2], DataLoss)
    assert [record.unpack(found[row], batch.identities[row]).header["position"][0] for row in (0, 1, 3, 4)] == [2] * 4
    assert await redis.smembers(batch.key(2)) == {b"not a record"}


async def test_something_shorter_than_a_header_is_a_conflict(sessions, redis, rows, commit):
    batch = rows(1)
    await redis.set(batch.key(0), "short")
    assert await commit(sessions, batch) == [b"short"]


async def test_a_full_store_fails_the_commit_and_keeps_the_session_as_it_was(sessions, redis, rows, commit):
    batch = rows()
    await commit(sessions, batch)
    standing = batch.expected.copy()
    before = [await redis.get(batch.key(row)) for row in range(3)]
    await redis.config_set("maxmemory", 1)
    answers = await commit(sessions, batch)
    assert [type(answer) for answer in answers] == [StoreFull] * 3
    assert await sessions.read(batch.keys) == before
    await redis.config_set("maxmemory", 0)
    batch.expected = standing
    assert await commit(sessions, batch) == [APPLIED] * 3


async def test_a_lost_script_is_loaded_again_unnoticed(sessions, redis, rows, commit):
    batch = rows()
    assert await commit(sessions, batch) == [APPLIED] * 3
    await redis.script_flush("SYNC")
    assert await commit(sessions, batch) == [APPLIED] * 3
    await redis.script_flush("SYNC")
    # Several in flight, each on top of the one before: their order must hold through the healing.
    flights = []
    for _ in range(5):
        records = batch.next()
        flights.append(asyncio.ensure_future(sessions.commit(batch.keys, batch.before, records, batch.ttl_ms)))
    assert await asyncio.gather(*flights) == [[APPLIED] * 3] * 5
    found = await sessions.read(batch.keys)
    assert [data[: HEADER.itemsize] for data in found] == [head.tobytes() for head in batch.expected]


@pytest.mark.parametrize("size", [1, 1 << 20])
async def test_states_of_any_size_are_committed(sessions, rows, commit, size):
    batch = rows(2, state=size)
    assert await commit(sessions, batch) == [APPLIED] * 2
    records = batch.next()
    assert await sessions.commit(batch.keys, batch.before, records, batch.ttl_ms) == [APPLIED] * 2
    assert await sessions.read(batch.keys) == [records[row].tobytes() for row in range(2)]


async def test_a_stage_that_is_gone_when_it_is_wanted_is_sent_again(valkey, rows, monkeypatch, tmp_path):
    """It lives a millisecond, and what moves it comes later than that over a slow wire."""
    monkeypatch.setattr(commit_commands, "STAGED_BYTES", 0)
    monkeypatch.setattr(commit_commands, "_STAGE_MS", b"1")
    async with Proxy(valkey.url.removeprefix("unix://")).laid(f"{tmp_path}/slow.sock") as wire:
        store = RedisStore(f"unix://{wire.address}", timeout_seconds=20, observe=lambda *_: None)
        await store.ping()
        wire.bytes_per_second = 4000
        batch = rows(1)
        for _ in range(2):
            records = batch.next()
            assert await store.commit(batch.keys, batch.before, records, batch.ttl_ms) == [APPLIED]
            assert await store.read(batch.keys) == [records[0].tobytes()]
        await store.close()
