"""The store over a real cluster, and over a primary that sentinels watch: what moves or dies stays unseen."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import numpy as np
import pytest
from redis.crc import key_slot

from recurra.server.store import record
from recurra.server.store.commit import APPLIED, DUPLICATE
from recurra.server.store.record import HEADER
from recurra.server.store.routes import hash_slots
from recurra.server.store.sessions import RedisStore
from recurra.wire.errors import StoreUnavailable
from tests.server.store.conftest import PREFIX, Rows, commit
from tests.service.processes import eventually
from tests.service.topologies import ClusterProcesses, Node, SentinelProcesses, free_ports

LARGE = 100_000  # bytes of state: its record is staged


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[ClusterProcesses]:
    processes = ClusterProcesses(tmp_path_factory.mktemp("cluster"))
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory) -> Iterator[SentinelProcesses]:
    processes = SentinelProcesses(tmp_path_factory.mktemp("sentinels"))
    yield processes
    processes.close()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., RedisStore]]:
    opened: list[RedisStore] = []

    def connect(url: str, *, timeout_seconds: float = 20, **more) -> RedisStore:
        opened.append(RedisStore(url, timeout_seconds=timeout_seconds, observe=lambda *_: None, **more))
        return opened[-1]

    yield connect
    for store in opened:
        await store.close()


def some(count: int, **more) -> Rows:
    return Rows([os.urandom(8).hex() for _ in range(count)], **more)


class Load:
    """Sessions that commit, two in flight, and are read behind each commit, until told to stop."""

    def __init__(self, store: RedisStore, rows: Rows, *, replicated: bool = False) -> None:
        self.commits, self._store, self._rows, self._replicated = 0, store, rows, replicated
        self._stopping = False
        self._task = asyncio.create_task(self._run())

    async def more(self, count: int) -> None:
        """Wait for so many more commits."""
        until = self.commits + count
        async with asyncio.timeout(30):
            while self.commits < until and not self._task.done():
                await asyncio.wait([self._task], timeout=0.01)
        if self._task.done():
            await self._task

    async def stop(self) -> None:
        self._stopping = True
        await self._task
        found = await self._store.read(self._rows.keys)
        assert [head[: HEADER.itemsize] for head in found] == [head.tobytes() for head in self._rows.expected]
        assert set(self._rows.expected["position"].tolist()) == {self.commits}

    async def _run(self) -> None:
        rows, flights = self._rows, []
        while not self._stopping:
            records = rows.next()
            sent = self._store.commit(rows.keys, rows.before, records, rows.ttl_ms, replicated=self._replicated)
            read = asyncio.create_task(self._store.read(rows.keys))
            flights.append((asyncio.ensure_future(sent), read, records))
            await asyncio.wait([read], timeout=0)  # it is sent now
            if len(flights) == 2:
                await self._settle(*flights.pop(0))
        for flight in flights:
            await self._settle(*flight)

    async def _settle(self, sent: Awaitable[list], read: Awaitable[list], records: np.ndarray) -> None:
        position = int(np.frombuffer(records[0, : HEADER.itemsize], HEADER)["position"][0])
        for outcome in await sent:  # sent again, it may find itself, or the next one of ours
            if isinstance(outcome, bytes):
                assert np.frombuffer(outcome, HEADER)["position"][0] > position
            else:
                assert outcome in (APPLIED, DUPLICATE), outcome
        for there in await read:
            assert np.frombuffer(there[: HEADER.itemsize], HEADER)["position"][0] >= position
        self.commits += 1


def test_hash_slots_are_the_clusters():
    keys = np.array([list(record.key(PREFIX, os.urandom(16))) for _ in range(300)], np.uint8)
    assert hash_slots(keys).tolist() == [key_slot(key.tobytes()) for key in keys]


@pytest.mark.parametrize("state", [32, LARGE])
async def test_a_cluster_keeps_records_as_one_store_does(cluster, connect, state):
    store, rows = connect(cluster.url), some(50, state=state)
    await store.ping()
    records = rows.next()
    assert await store.commit(rows.keys, rows.before, records, rows.ttl_ms) == [APPLIED] * 50
    assert await store.commit(rows.keys, rows.before, records, rows.ttl_ms) == [DUPLICATE] * 50
    assert await store.read(rows.keys) == [each.tobytes() for each in records]
    other = rows.expected.copy()
    other["commit"] += 1
    conflicts = await commit(store, rows, expected=other)
    assert conflicts == [head.tobytes() for head in rows.before]
    sizes = [node.ask("DBSIZE") for node in cluster.nodes[:3]]
    assert min(sizes) > 0
    assert sum(sizes) >= 50


@pytest.mark.parametrize("count", [1, 10, 1000])
async def test_a_scan_goes_over_all_primaries(cluster, connect, count):
    prefix = record.key_prefix("t", f"scan{count}")
    store, rows = connect(cluster.url), some(60, prefix=prefix)
    await commit(store, rows)
    found, cursor = set(), 0
    while True:
        cursor, keys = await store.scan(prefix, cursor, count)
        found |= {key for key, _ in keys}
        if not cursor:
            break
    assert found == {rows.key(row) for row in range(60)}


@pytest.mark.parametrize("replicated", [False, True])
async def test_failovers_of_a_cluster_are_not_seen(cluster, connect, replicated):
    load = Load(connect(cluster.url), some(40), replicated=replicated)
    for at in range(3):
        await load.more(5)
        before, after = cluster.primary(at), cluster.replica(at)
        after.ask("CLUSTER", "FAILOVER")
        await asyncio.to_thread(eventually, lambda after=after: after.role[0] == "master")
        await load.more(5)
        assert before.role[0] == "slave"
    await load.stop()
    eventually(cluster.is_whole)


@pytest.mark.parametrize("state", [32, LARGE])
async def test_hash_slots_that_move_under_load_are_not_seen(cluster, connect, state):
    rows = some(20, state=state)
    load = Load(connect(cluster.url), rows)
    await load.more(1)
    source, target = cluster.primary(0), cluster.primary(1)
    slots = sorted({slot for slot in hash_slots(rows.keys).tolist() if source.ask("CLUSTER", "COUNTKEYSINSLOT", slot)})
    assert slots
    for slot in slots[:3]:
        for _ in cluster.moving(slot, source, target):
            await load.more(3)
    await load.more(3)
    await load.stop()
    for slot in slots[:3]:
        for _ in cluster.moving(slot, target, source):
            pass
    eventually(cluster.is_whole)


async def test_a_primary_of_a_cluster_that_is_killed_is_followed_by_its_replica(connect, tmp_path):
    cluster = ClusterProcesses(tmp_path / "cluster")
    try:
        store, rows = connect(cluster.url, replicas=1), some(40)
        load = Load(store, rows, replicated=True)  # so that its replica has what was acknowledged
        await load.more(5)
        cluster.nodes[1].kill()
        await asyncio.to_thread(eventually, lambda: cluster.nodes[4].role[0] == "master")
        cluster.nodes[1].start()  # a replica now, which its successor waits for
        await load.more(5)
        await load.stop()
    finally:
        cluster.close()


@pytest.mark.parametrize("replicated", [False, True])
async def test_a_failover_of_sentinels_is_not_seen(sentinels, connect, replicated):
    load = Load(connect(sentinels.url), some(40), replicated=replicated)
    await load.more(5)
    await asyncio.to_thread(sentinels.fail_over, "COORDINATED")
    await load.more(5)
    await load.stop()


@pytest.mark.parametrize("how", ["read", "commit", "replicated"])
async def test_a_primary_that_was_emptied_into_a_replica_does_not_say_that_sessions_are_gone(connect, tmp_path, how):
    primary, other = (Node(tmp_path / name, port) for name, port in zip("ab", free_ports(2), strict=True))
    try:
        store, rows = connect(f"redis://127.0.0.1:{primary.port}", timeout_seconds=1, replicas=0), some(3)

        async def ask() -> list:
            if how == "read":
                return await store.read(rows.keys)
            return await store.commit(rows.keys, rows.expected, rows.next(), rows.ttl_ms, replicated=how != "commit")

        await commit(store, rows)
        await ask()
        primary.ask("REPLICAOF", "127.0.0.1", other.port)  # which leaves its clients connected
        eventually(lambda: primary.role[0] == "slave" and primary.ask("DBSIZE") == 0)
        with pytest.raises(StoreUnavailable):
            await ask()
    finally:
        primary.close()
        other.close()


async def test_a_primary_that_is_killed_is_followed_by_the_one_that_the_sentinels_name(connect, tmp_path):
    sentinels = SentinelProcesses(tmp_path / "sentinels")
    try:
        load = Load(connect(sentinels.url), some(40), replicated=True)  # one replica, of which another one is left
        await load.more(5)
        killed = sentinels.primary
        killed.kill()
        await load.more(5)
        assert sentinels.primary is not killed
        await load.stop()
    finally:
        sentinels.close()
