"""Servers on a cluster, and on a primary that sentinels watch, while primaries change and die: users do not see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recurra.client import AsyncClient
from recurra.client.standing import Durability
from recurra.v1.inference_pb2 import DURABILITY_REPLICATED
from recurra.wire.errors import NotReplicated, StoreUnavailable
from tests.conftest import StartServer
from tests.service.caller import Caller, new_id
from tests.service.processes import ServerProcess, eventually
from tests.service.topologies import ClusterProcesses, Node, SentinelProcesses
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
K, MOST = 24, 4000
XS = [LSTM.draw(row, MOST) for row in range(K)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    processes = ClusterProcesses(tmp_path_factory.mktemp("cluster"))
    yield processes
    processes.close()


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[SentinelProcesses]:
    processes = SentinelProcesses(tmp_path / "sentinels")
    yield processes
    processes.close()


class Stepping:
    """Sessions that step, one timestep after the other, each a task of its own."""

    def __init__(self, client: AsyncClient, prefix: str, durability: Durability) -> None:
        self._client, self._prefix, self._durability = client, prefix, durability
        self._ys: list[list[NDArray[np.float32]]] = [[] for _ in range(K)]
        self._stopping = False

    async def more(self, count: int) -> None:
        """Wait until each was answered so often once more."""
        wanted = [len(ys) + count for ys in self._ys]
        async with asyncio.timeout(30):
            while any(len(ys) < want for ys, want in zip(self._ys, wanted, strict=True)):
                await asyncio.wait(self._tasks, timeout=0.01)
                for task in self._tasks:
                    if task.done():
                        task.result()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._client.stream("lstm", durability=self._durability) as stream:

            async def step(row: int) -> None:
                while not self._stopping and len(self._ys[row]) < MOST:
                    self._ys[row].append(await stream.predict(f"{self._prefix}{row}", XS[row][len(self._ys[row])]))

            self._tasks = [asyncio.create_task(step(row)) for row in range(K)]
            try:
                await self.more(5)
                yield
                await self.more(5)
            finally:
                self._stopping = True
                await asyncio.gather(*self._tasks)

    def check(self, server: ServerProcess) -> None:
        """Every answer is the oracle's, and each session stands where it was stepped to."""
        with Caller(server.address) as caller:
            for row, ys in enumerate(self._ys):
                np.testing.assert_allclose(np.stack(ys), LSTM.whole(XS[row][: len(ys)]), **CLOSE)
                assert caller.get("lstm", f"{self._prefix}{row}").position == len(ys)


async def failed_over(cluster: ClusterProcesses, at: int) -> None:
    after = cluster.replica(at)
    after.ask("CLUSTER", "FAILOVER")
    await asyncio.to_thread(eventually, lambda: after.role[0] == "master")


@pytest.mark.parametrize("durability", ["committed", "checkpointed", "replicated"])
async def test_failovers_and_moving_hash_slots_of_a_cluster(
    start_server: StartServer, cluster: ClusterProcesses, durability: Durability
) -> None:
    server = start_server("--checkpoint-seconds", "0.2", store=cluster.url)
    async with AsyncClient(server.address) as client:
        stepping = Stepping(client, f"{durability}-", durability)
        async with stepping.running():
            for at in range(3):
                await failed_over(cluster, at)
                await stepping.more(3)
            source, target = cluster.primary(0), cluster.primary(2)
            for slot in slots_with_keys(source)[:2]:
                for _ in cluster.moving(slot, source, target):
                    await stepping.more(2)
    stepping.check(server)


def slots_with_keys(node: Node) -> list[int]:
    slots = {node.ask("CLUSTER", "KEYSLOT", key) for key in node.ask("KEYS", "recurra:*")}
    return sorted(slots)


@pytest.mark.parametrize("durability", ["committed", "replicated"])
async def test_a_primary_of_a_cluster_is_killed(
    start_server: StartServer, tmp_path: Path, durability: Durability
) -> None:
    cluster = ClusterProcesses(tmp_path / "cluster")
    try:
        servers = [start_server(store=cluster.url) for _ in range(2)]
        async with AsyncClient([each.address for each in servers]) as client:
            stepping = Stepping(client, "s", durability)
            async with stepping.running():
                cluster.nodes[1].kill()
                await asyncio.to_thread(eventually, lambda: cluster.nodes[4].role[0] == "master")
                cluster.nodes[1].start()
        for server in servers:
            stepping.check(server)
        with Caller(servers[0].address) as caller:
            assert {each.session for each in caller.page("lstm", 1000).sessions} == {f"s{row}" for row in range(K)}
    finally:
        cluster.close()


@pytest.mark.parametrize("durability", ["committed", "replicated"])
async def test_sentinels_fail_over_and_a_primary_is_killed(
    start_server: StartServer, sentinels: SentinelProcesses, durability: Durability
) -> None:
    servers = [start_server(store=sentinels.url) for _ in range(2)]
    async with AsyncClient([each.address for each in servers]) as client:
        stepping = Stepping(client, "s", durability)
        async with stepping.running():
            await asyncio.to_thread(sentinels.fail_over)  # the old one goes on for seconds: what it takes is lost
            killed = sentinels.primary
            await asyncio.to_thread(eventually, lambda: "cmdstat_evalsha" in killed.ask("INFO", "commandstats"))
            await stepping.more(5)
            killed.kill()
            await stepping.more(5)
            assert sentinels.primary is not killed
    for server in servers:
        stepping.check(server)


def test_too_few_replicas_are_told_and_a_retry_is_not_applied_twice(
    start_server: StartServer, sentinels: SentinelProcesses
) -> None:
    server = start_server("--replicas", "2", "--store-timeout-seconds", "1", store=sentinels.url)
    x, identity = LSTM.draw(0, 3), new_id()
    primary = sentinels.primary
    replicas = [node for node in sentinels.nodes if node is not primary]
    with Caller(server.address) as caller:
        first = caller.predict("lstm", "s", x[:1], durability=DURABILITY_REPLICATED)
        replicas[0].kill()
        for _ in range(2):  # the first time, and a retry: it waits for the replicas as well
            with pytest.raises(NotReplicated, match="have the operation: 1; needed: 2"):
                caller.predict("lstm", "s", x[1:2], id=identity, after=first.id, durability=DURABILITY_REPLICATED)
        assert caller.get("lstm", "s").position == 2
        replicas[0].start()
        eventually(lambda: replicas[0].role[-2] == "connected")
        again = caller.predict("lstm", "s", x[1:2], id=identity, after=first.id, durability=DURABILITY_REPLICATED)
        assert again.duplicate
        assert again.position == 2
        np.testing.assert_allclose(again.y, LSTM.whole(x[:2])[1:], **CLOSE)
        third = caller.predict("lstm", "s", x[2:], after=identity)
        np.testing.assert_allclose(third.y, LSTM.whole(x)[2:], **CLOSE)


def test_a_primary_with_too_few_replicas_to_write_applies_nothing(
    start_server: StartServer, sentinels: SentinelProcesses
) -> None:
    server, x = start_server(store=sentinels.url), LSTM.draw(0, 2)
    with Caller(server.address) as caller:
        first = caller.predict("lstm", "s", x[:1])
        sentinels.primary.ask("CONFIG", "SET", "min-replicas-to-write", 3)
        for session, after in (("s", first.id), ("new", b"")):
            with pytest.raises(StoreUnavailable, match="NOREPLICAS"):
                caller.predict("lstm", session, x[1:], after=after)
        assert caller.get("lstm", "s") == first.session
        sentinels.primary.ask("CONFIG", "SET", "min-replicas-to-write", 0)
        second = caller.predict("lstm", "s", x[1:], after=first.id)
        np.testing.assert_allclose(second.y, LSTM.whole(x)[1:], **CLOSE)
