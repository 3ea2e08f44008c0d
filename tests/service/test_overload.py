"""More than can be served: a bounded queue, refusals that say when to come back, and no help needed afterwards."""

from __future__ import annotations

import asyncio
import signal

import numpy as np

from recurra.client import AsyncClient
from recurra.wire.errors import Overloaded, RecurraError, StoreUnavailable
from tests.conftest import StartServer
from tests.service.caller import Caller, Pending, Reply
from tests.service.processes import ValkeyProcess, eventually
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
X = LSTM.draw(0, 3)
QUEUE = 32
CALLS = 200


def test_while_the_store_hangs_the_queue_is_bounded_and_who_is_refused_is_told_when_to_come_back(
    start_server: StartServer, valkey: ValkeyProcess
):
    server = start_server("--queue-limit", str(QUEUE), "--store-timeout-seconds", "60", store=valkey.url)
    with Caller(server.address) as caller:
        caller.predict("lstm", "warm", X)
        valkey.process.send_signal(signal.SIGSTOP)
        try:
            sent = [caller.send("lstm", f"s{number}", X) for number in range(CALLS)]
            eventually(lambda: sum(pending.call.done() for pending in sent) >= CALLS - QUEUE)
            refused = [pending for pending in sent if pending.call.done()]
            assert len(refused) == CALLS - QUEUE  # the others wait
        finally:
            valkey.process.send_signal(signal.SIGCONT)
        for pending in sent:
            checked(pending, refused=pending in refused)
        for number in range(CALLS):  # who was refused has consumed nothing
            position = caller.predict("lstm", f"s{number}", X).position
            assert position == (3 if sent[number] in refused else 6)


def checked(pending: Pending, *, refused: bool) -> None:
    outcome = pending.outcome()
    if refused:
        assert type(outcome) is Overloaded
        assert outcome.retry_after is not None
        assert outcome.retry_after > 0
    else:
        assert not isinstance(outcome, RecurraError)
        np.testing.assert_allclose(outcome.y, LSTM.whole(X), **CLOSE)


async def test_users_of_the_sdk_see_nothing_of_a_store_that_hung(start_server: StartServer, valkey: ValkeyProcess):
    """Calls time out at the store, or find the queue full; the SDK makes them again, and none counts twice."""
    server = start_server("--queue-limit", str(QUEUE), "--store-timeout-seconds", "0.5", store=valkey.url)
    async with AsyncClient(server.address, timeout=60) as client:

        async def steps(number: int) -> None:
            session = client.session("lstm", f"s{number}")
            first = await session.predict(X)
            began.release()
            rest = [await session.predict(X) for _ in range(4)]
            np.testing.assert_allclose(np.concatenate([first, *rest]), LSTM.whole(*[X] * 5), **CLOSE)

        began = asyncio.Semaphore(0)
        async with asyncio.TaskGroup() as tasks:
            for number in range(CALLS):
                tasks.create_task(steps(number))
            for _ in range(CALLS // 4):
                await began.acquire()
            valkey.process.send_signal(signal.SIGSTOP)
            try:
                await asyncio.to_thread(eventually, lambda: isinstance(asked(server.address), StoreUnavailable))
            finally:
                valkey.process.send_signal(signal.SIGCONT)


def asked(address: str) -> Reply | RecurraError:
    with Caller(address) as caller:
        return caller.send("lstm", "somebody else", X).outcome()
