"""States that come to the host late: what is run and decided meanwhile, and that nothing overtakes them."""

import asyncio
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest

from recurra.server.engine.operation import Kind
from recurra.wire.errors import Behind, Overloaded
from tests.server.engine.world import PATIENCE, Call, Replica, World, new_id, turned, until
from tests.service import zoo

PICKY = zoo.MODELS["picky"]


class Copies:
    """Copies from the pool of a replica wait here; `failures`: how many of them fail then."""

    def __init__(self, replica: Replica) -> None:
        self._pool = replica.runner.real._pool
        self._read, self._pool.read = self._pool.read, self.read
        self.begun, self.failures, self._let = 0, 0, threading.Semaphore(0)

    def read(self, places: np.ndarray) -> np.ndarray:
        self.begun += 1
        assert self._let.acquire(timeout=PATIENCE)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the copy failed")
        return self._read(places)

    def open(self, count: int = 1 << 20) -> None:
        """Let so many pass: all that there will be."""
        self._let.release(count)

    async def here(self) -> None:
        await until(self._begun)

    async def _begun(self) -> bool:
        await asyncio.sleep(0)
        return self.begun > 0


@pytest.fixture
async def late(here: World) -> AsyncIterator[tuple[Replica, Copies]]:
    replica = await here.replica(states="device")
    copies = Copies(replica)
    yield replica, copies
    copies.open()


def x(seed: int) -> np.ndarray:
    return PICKY.draw(seed, 1)


async def same(call: Call, *chunks: np.ndarray) -> None:
    found = await call.answer()
    np.testing.assert_allclose(found.y, PICKY.whole(*chunks)[-1:], rtol=1e-6)
    assert found.position == len(chunks)


async def ran(replica: Replica, count: int) -> None:
    """Wait until so many batches were run, and what came of them is in line."""

    async def enough() -> bool:
        await asyncio.sleep(0)
        return len(replica.engine._commits._flights) >= count

    await until(enough)


async def two_in_line(a: Replica, copies: Copies) -> tuple[Call, Call]:
    """Two operations of a session that were run, while the states of the first are not there yet."""
    first = a.predict("s", x(0))
    await copies.here()
    second = a.predict("s", x(1), after=first.id)
    await ran(a, 2)
    return first, second


async def test_a_session_goes_on_while_its_states_are_copied(late):
    a, copies = late
    first, second = await two_in_line(a, copies)
    assert (len(a.runner.runs), a.store.passed["commit"]) == (2, 0)
    copies.open()
    await same(first, x(0))
    await same(second, x(0), x(1))
    assert await a.stands("s") == (second.id, 2)


async def test_what_rests_on_a_state_that_never_came_is_run_again_with_it(late):
    a, copies = late
    first, second = await two_in_line(a, copies)
    copies.failures = 1
    copies.open()
    await same(first, x(0))
    await same(second, x(0), x(1))
    assert await a.stands("s") == (second.id, 2)


async def test_what_waits_is_run_as_soon_as_what_is_before_it_was_sent(late):
    a, copies = late
    commit = a.store.hold("commit")
    first = a.predict("s", x(0))
    await copies.here()
    other = a.predict("t", x(1))
    await ran(a, 2)
    second = a.predict("s", x(2), after=first.id)
    for _ in range(200):  # more turns than it waits for others to come
        await asyncio.sleep(0)
    assert len(a.runner.runs) == 2  # two are not sent: so much is enough
    copies.open(1)
    await ran(a, 3)
    assert not commit.opened.is_set()
    copies.open()
    commit.open()
    await same(first, x(0))
    await same(other, x(1))
    await same(second, x(0), x(2))


async def test_a_retry_is_answered_once_the_store_has_what_it_repeats(late):
    a, copies = late
    first = a.predict("s", x(0))
    await copies.here()
    again = a.predict("s", x(0), id_=first.id)
    other = a.predict("t", x(5))
    await ran(a, 2)
    assert not again.done
    copies.open()
    await same(first, x(0))
    await same(again, x(0))
    assert (await again.answer()).duplicate
    await same(other, x(5))


async def test_what_does_not_continue_a_session_is_judged_by_what_is_in_line(late):
    a, copies = late
    first = a.predict("s", x(0))
    await copies.here()
    stray = a.predict("s", x(1), after=new_id())
    copies.open()
    await same(first, x(0))
    with pytest.raises(Behind):
        await stray.answer()
    assert await a.stands("s") == (first.id, 1)


async def test_a_session_is_not_owned_again_once_what_lets_it_go_is_in_line(late):
    a, copies = late
    copies.open(1)
    first = await a.predict("s", x(0), checkpointed=True).answer()
    second = a.predict("s", x(1), after=first.last_id, checkpointed=True)  # with this one it is to be owned
    await until(lambda: turned(lambda: copies.begun == 2))
    third = a.predict("s", x(2), after=second.id)  # but not with this one
    await ran(a, 2)
    copies.open(1)
    await same(second, x(0), x(1))
    assert not a.engine.slots.owned[a.engine.slot("s")]
    copies.open()
    await same(third, x(0), x(1), x(2))
    again = a.predict("s", x(2), after=second.id, id_=third.id)
    await same(again, x(0), x(1), x(2))
    assert (await again.answer()).duplicate


async def test_a_checkpoint_that_waits_for_its_states_keeps_its_sessions_slot(here: World):
    a = await here.replica(states="device", slots=1)
    last = bytes(16)
    for at in range(3):
        last = (await a.predict("s", x(at), after=last, checkpointed=True).answer()).last_id
    copies = Copies(a)
    looking = asyncio.create_task(a.engine.look("s"))
    await copies.here()
    with pytest.raises(Overloaded, match="every slot is in use"):
        a.engine.slot("t")
    copies.open()
    assert (await looking).header["position"][0] == 3
    await same(a.predict("t", x(9)), x(9))


async def test_what_does_not_continue_a_session_takes_no_checkpoint_out_of_line(late):
    a, copies = late
    copies.open(2)
    last = [bytes(16)]
    for at in range(3):
        last.append((await a.predict("s", x(at), after=last[-1], checkpointed=True).answer()).last_id)
    a.engine.leave(np.array([a.engine.slot("s")]))
    await until(lambda: turned(lambda: copies.begun == 3))
    stray = a.predict("s", x(9), after=new_id())
    await until(lambda: turned(lambda: not a.engine.slots.ready[a.engine.slot("s")]))
    copies.open()
    with pytest.raises(Behind):
        await stray.answer()
    assert await a.stands("s") == (last[-1], 3)


async def test_what_does_not_continue_a_session_takes_nothing_out_of_line(late):
    a, copies = late
    first = a.predict("s", x(0))
    await copies.here()
    stray = a.predict("s", x(1), after=new_id())
    await until(lambda: turned(lambda: not a.engine.slots.ready[a.engine.slot("s")]))
    copies.open()
    await same(first, x(0))
    with pytest.raises(Behind):
        await stray.answer()
    assert len(a.runner.runs) == 1


async def test_a_reply_with_states_waits_for_them(late):
    a, copies = late
    call = a.predict("s", x(0), return_states=True)
    await copies.here()
    assert not call.done
    copies.open()
    found = await call.answer()
    np.testing.assert_allclose(found.states[0], PICKY.whole(x(0))[-1], rtol=1e-6)


async def test_an_ended_session_waits_for_no_copy(late):
    a, copies = late
    first = a.predict("s", x(0))
    await copies.here()
    ended = a.change(Kind.END, "s", after=first.id)
    await ran(a, 2)
    assert copies.begun == 1
    copies.open()
    await ended.answer()
    await same(first, x(0))


async def test_states_that_cannot_be_put_there_refuse_their_sessions_and_no_others(here: World, monkeypatch):
    a, b = await here.replica(), await here.replica(states="device")
    last = (await a.predict("s", x(0)).answer()).last_id
    load = b.runner.load
    monkeypatch.setattr(b.engine._loader._runner, "load", _no_memory)
    with pytest.raises(Overloaded, match="cannot be put where the model runs: no place is free; safe to retry"):
        await b.predict("s", x(1), after=last).answer()
    await same(b.predict("t", x(5)), x(5))
    monkeypatch.setattr(b.engine._loader._runner, "load", load)
    await same(b.predict("s", x(1), after=last), x(0), x(1))


def _no_memory(*_: object) -> None:
    raise MemoryError("no place is free")
