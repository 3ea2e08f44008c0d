"""Replicas that stop, or hang: what was taken is answered and kept, and the SDK goes on at another."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recurra.client import AsyncClient
from recurra.wire.errors import Draining
from tests.conftest import StartServer
from tests.service.caller import Caller
from tests.service.processes import ValkeyProcess, free_address
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
EACH = 6  # sessions of each kind
Step = Callable[[np.ndarray], Awaitable[np.ndarray]]


async def test_a_rolling_restart_of_three_replicas_under_load_fails_no_operation(
    start_server: StartServer, valkey: ValkeyProcess
) -> None:
    replicas = [start_server("--listen", free_address(), store=valkey.url) for _ in range(3)]
    rolled, stepped, steps = asyncio.Event(), asyncio.Event(), dict[str, int]()

    async def caller(name: str, row: int, step: Step) -> None:
        """Steps a session until all replicas are new, and then some more: no call may raise."""
        x, ys, after = LSTM.draw(row, 20_000), [], 0
        while after < 5:
            ys.append(await step(x[len(ys)][None]))
            steps[name] = len(ys)
            stepped.set()
            after += rolled.is_set()
        np.testing.assert_allclose(np.concatenate(ys), LSTM.whole(x[: len(ys)]), **CLOSE)

    async with (
        AsyncClient([each.address for each in replicas]) as client,
        client.stream("lstm") as committed,
        client.stream("lstm", durability="checkpointed") as checkpointed,
        asyncio.TaskGroup() as tasks,
    ):
        for row in range(EACH):
            session = client.session("lstm", f"calls {row}")
            tasks.create_task(caller(f"calls {row}", row, session.predict))
            for kind, stream in (("committed", committed), ("checkpointed", checkpointed)):
                name = f"{kind} {row}"
                tasks.create_task(caller(name, row, lambda x, s=stream, n=name: s.predict(n, x)))
        for replica in replicas:
            await all_step(steps, stepped)
            assert await asyncio.to_thread(replica.stop) == 0
            await all_step(steps, stepped)
            await asyncio.to_thread(replica.start)
        rolled.set()
    with Caller(replicas[0].address) as caller_:
        assert {name: caller_.get("lstm", name).position for name in steps} == steps


async def all_step(steps: dict[str, int], stepped: asyncio.Event) -> None:
    """Wait until each session has made three more steps."""
    before = dict(steps)
    async with asyncio.timeout(60):
        while len(steps) < 3 * EACH or any(done < before.get(name, 0) + 3 for name, done in steps.items()):
            stepped.clear()
            await stepped.wait()


def test_sigterm_fails_health_first_and_ends_streams_that_rest(start_server: StartServer) -> None:
    """None of these clients ends anything by itself: the server waits neither for the stream nor for who watches."""
    server = start_server("--drain-seconds", "3600")
    with Caller(server.address) as caller, caller.stream("lstm", ["a"]) as stream:
        health = health_pb2_grpc.HealthStub(caller.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert stream.ask([0], LSTM.draw(0, 1)[None]).refused is None
        server.signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(Draining):
            list(stream.replies())
        assert server.wait(60) == 0


async def test_a_replica_that_hangs_is_left_for_another(start_server: StartServer, valkey: ValkeyProcess) -> None:
    """Its kernel still acknowledges what is sent to it: only HTTP/2's pings tell."""
    hanging, other = (start_server(store=valkey.url) for _ in range(2))
    x = LSTM.draw(0, 2)
    async with AsyncClient([hanging.address, other.address]) as client, client.stream("lstm") as stream:
        session = client.session("lstm", "calls")
        first = [await session.predict(x[:1]), await stream.predict("streams", x[:1])]
        hanging.signal(signal.SIGSTOP)
        second = await asyncio.gather(session.predict(x[1:], timeout=30), stream.predict("streams", x[1:], timeout=30))
        for one, two in zip(first, second, strict=True):
            np.testing.assert_allclose(np.concatenate([one, two]), LSTM.whole(x), **CLOSE)
