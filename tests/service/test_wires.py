"""What is held, cut and lost between client, service and store, and processes that die meanwhile: one step each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from recurra.v1 import session_pb2
from recurra.wire.errors import Behind, DataLoss, Overloaded, RecurraError, SessionExists, SessionNotFound
from tests.conftest import StartServer
from tests.models import graphs
from tests.proxy import Proxy
from tests.service.caller import Caller, Reply, new_id
from tests.service.conftest import key
from tests.service.processes import ServerProcess, ValkeyProcess, eventually, store_client
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
X, OTHER = LSTM.draw(0, 5), LSTM.draw(1, 5)
T = TypeVar("T")


async def doing(work: Callable[..., T], *arguments: Any, **more: Any) -> T:
    """Blocking work, beside the proxies on this event loop."""
    return await asyncio.to_thread(work, *arguments, **more)


class Pair:
    """Two replicas on one store, the first one behind proxies.

    Attributes:
        front, back: before the first, and between it and the store.
        one, two: a client of each.
    """

    def __init__(self, front: Proxy, back: Proxy, first: ServerProcess, one: Caller, two: Caller) -> None:
        self.front, self.back, self.first, self.one, self.two = front, back, first, one, two

    async def stands_at(self, id_: bytes) -> None:
        """Wait until the store has this operation."""
        await doing(eventually, lambda: self.two.get("lstm", "s").last_id == id_)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """One model: most tests start servers of their own."""
    return graphs.write(LSTM.built, tmp_path / "models", "lstm").parent


@pytest.fixture
async def pair(start_server: StartServer, models: Path, valkey: ValkeyProcess, tmp_path: Path) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        back = await stack.enter_async_context(Proxy(valkey.socket).laid(f"{tmp_path}/back.sock"))
        first = await doing(start_server, models=models, store=f"unix://{back.address}")
        second = await doing(start_server, models=models, store=valkey.url)
        front = await stack.enter_async_context(Proxy(first.address).laid())
        one, two = (stack.enter_context(Caller(address)) for address in (front.address, second.address))
        yield Pair(front, back, first, one, two)
        back.heal()


def right(reply: Reply, *chunks: np.ndarray) -> None:
    """It answers the last of `chunks`, all of which were applied, and nothing else."""
    np.testing.assert_allclose(reply.y, LSTM.whole(*chunks)[-len(chunks[-1]) :], **CLOSE)
    assert reply.position == sum(map(len, chunks))


@pytest.mark.parametrize("cut", ["before", "after", "replies lost"])
async def test_a_store_that_is_cut_off_before_or_after_the_commit_sees_one_step(pair: Pair, cut: str) -> None:
    first, second = await doing(pair.one.predict, "lstm", "s", X), new_id()
    if cut == "before":
        pair.back.cut_before()
    elif cut == "after":
        pair.back.cut_after()
    else:
        pair.back.lose_replies()
    pending = pair.one.send("lstm", "s", OTHER, id=second, after=first.id)
    await pair.stands_at(second) if cut != "before" else None
    if cut == "replies lost":
        pair.back.cut()
    reply = await doing(pending.reply)
    right(reply, X, OTHER)
    assert not reply.duplicate
    right(await doing(pair.two.predict, "lstm", "s", X, after=second), X, OTHER, X)


async def test_a_replica_killed_before_its_commit_left_and_what_arrives_of_it_late(pair: Pair) -> None:
    """The retry elsewhere is a first step; the dead one's commit reaches the store after it and changes nothing."""
    first, second = await doing(pair.one.predict, "lstm", "s", X), new_id()
    pair.back.hold()
    pending = pair.one.send("lstm", "s", OTHER, id=second, after=first.id)
    await doing(eventually, lambda: pair.back.held)
    await doing(pair.first.kill)
    assert isinstance(await doing(pending.outcome), RecurraError)
    reply = await doing(pair.two.predict, "lstm", "s", OTHER, id=second, after=first.id)
    assert not reply.duplicate
    right(reply, X, OTHER)
    pair.back.flow()
    right(await doing(pair.two.predict, "lstm", "s", X, after=second), X, OTHER, X)


async def test_a_replica_killed_after_its_commit_and_before_its_reply(pair: Pair) -> None:
    first, second = await doing(pair.one.predict, "lstm", "s", X), new_id()
    pair.back.lose_replies()
    pending = pair.one.send("lstm", "s", OTHER, id=second, after=first.id)
    await pair.stands_at(second)
    await doing(pair.first.kill)
    assert isinstance(await doing(pending.outcome), RecurraError)
    reply = await doing(pair.two.predict, "lstm", "s", OTHER, id=second, after=first.id)
    assert reply.duplicate
    right(reply, X, OTHER)


async def test_an_input_that_was_given_up_and_arrives_late_is_not_applied(pair: Pair) -> None:
    first = await doing(pair.one.predict, "lstm", "s", X)
    pair.front.hold()
    late = pair.one.send("lstm", "s", OTHER, after=first.id)
    second = await doing(pair.two.predict, "lstm", "s", X, after=first.id)
    pair.front.flow()
    outcome = await doing(late.outcome)
    assert isinstance(outcome, Behind)
    assert outcome.last_id == second.id
    right(await doing(pair.two.predict, "lstm", "s", X, after=second.id), X, X, X)


@pytest.mark.parametrize("named", [True, False])
async def test_a_zombie_with_a_copy_of_what_was_rolled_back_never_overwrites_the_new_history(
    pair: Pair, valkey: ValkeyProcess, *, named: bool
) -> None:
    """Both histories stand at the same position: only their commits tell them apart."""
    first = await doing(pair.one.predict, "lstm", "s", X)
    with store_client(valkey.socket) as store:
        kept = store.dump(key("lstm", "s"))
        gone = await doing(pair.one.predict, "lstm", "s", OTHER, after=first.id)
        store.restore(key("lstm", "s"), 60_000, kept, replace=True)
    second = await doing(pair.two.predict, "lstm", "s", X, after=first.id)
    assert second.position == gone.position
    outcome = await doing(pair.one.send("lstm", "s", OTHER, after=gone.id if named else b"").outcome)
    if named:
        assert isinstance(outcome, Behind)
        assert outcome.last_id == second.id
        outcome = await doing(pair.one.predict, "lstm", "s", OTHER, after=second.id)
    assert isinstance(outcome, Reply)
    right(outcome, X, X, OTHER)


async def test_of_creates_that_race_one_begins_the_session_and_resets_that_race_are_in_one_order(pair: Pair) -> None:
    creates = [new_id() for _ in range(8)]
    new = {"create": session_pb2.CREATE_NEW}
    sent = [(pair.one, pair.two)[at % 2].send("lstm", "s", X, id=each, **new) for at, each in enumerate(creates)]
    outcomes = [await doing(pending.outcome) for pending in sent]
    [won] = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, RecurraError)]
    assert {type(error) for error in refused} == {SessionExists}
    again = await doing(pair.two.predict, "lstm", "s", X, id=won.id, **new)
    assert again.session == won.session
    resets = [new_id() for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        done = await asyncio.gather(
            *(
                asyncio.wrap_future(threads.submit((pair.one, pair.two)[at % 2].reset, "lstm", "s", id=each))
                for at, each in enumerate(resets)
            )
        )
    assert {each.position for each in done} == {0}
    last = (await doing(pair.one.get, "lstm", "s")).last_id
    assert last in resets
    right(await doing(pair.two.predict, "lstm", "s", X, after=last), X)


@pytest.fixture
def emptied(valkey: ValkeyProcess) -> Iterator[Callable[[], None]]:
    """Kills the store, which has no file, and starts it again."""
    again: list[ValkeyProcess] = []

    def empty() -> None:
        valkey.close()
        again.append(ValkeyProcess(Path(valkey.socket).parent))

    yield empty
    for each in again:
        each.close()


async def test_a_store_that_restarts_empty_is_data_loss_never_expiry_or_a_fresh_state(
    pair: Pair, emptied: Callable[[], None]
) -> None:
    first = await doing(pair.one.predict, "lstm", "s", X)
    await doing(emptied)
    told = {"after": first.id, "expire": first.session.expire_time}
    for caller in (pair.one, pair.two):  # one has it in a slot yet, the other one never had it
        await doing(eventually, lambda caller=caller: _reason(caller) == "SESSION_NOT_FOUND")
        with pytest.raises(DataLoss):
            await doing(caller.predict, "lstm", "s", X, **told)
    with pytest.raises(SessionNotFound):
        await doing(pair.two.predict, "lstm", "s", X, after=first.id)  # it does not say that it was told anything
    right(await doing(pair.two.predict, "lstm", "s", X), X)


def _reason(caller: Caller) -> str:
    try:
        caller.get("lstm", "s")
    except RecurraError as error:
        return error.reason
    return ""


async def test_a_store_that_takes_100_ms_has_bounded_queues_and_sheds_the_rest_and_doubles_nothing(
    start_server: StartServer, models: Path, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    sessions, steps, limit = 24, 6, 8
    async with Proxy(valkey.socket).laid(f"{tmp_path}/slow.sock") as back:
        back.delay_seconds = 0.05
        server = await doing(start_server, "--queue-limit", str(limit), models=models, store=f"unix://{back.address}")

        def client(row: int) -> int:
            x, last, shed = LSTM.draw(row, steps), b"", 0
            with Caller(server.address) as caller:
                for t in range(steps):
                    id_ = new_id()
                    while True:
                        try:
                            reply = caller.predict("lstm", f"s{row}", x[t : t + 1], id=id_, after=last)
                        except Overloaded as error:
                            shed += error.retry_after is not None
                            continue
                        break
                    np.testing.assert_allclose(reply.y, LSTM.whole(x[: t + 1])[-1:], **CLOSE)
                    assert reply.position == t + 1
                    last = id_
            return shed

        with ThreadPoolExecutor(sessions) as threads:
            loop = asyncio.get_running_loop()
            shed = await asyncio.gather(*(loop.run_in_executor(threads, client, row) for row in range(sessions)))
    assert sum(shed) > 0
