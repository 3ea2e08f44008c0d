"""Operations that are acknowledged before the store has them: what is told, when it is written, who else may go on.

The model is zoo's "picky", h' = h / 2 + x and y = h': what it answers tells all that was applied, in its order.
"""

import asyncio

import numpy as np
import pytest

from recurra.server.engine.operation import Create, Kind
from recurra.wire.errors import (
    AlreadyApplied,
    Behind,
    DataLoss,
    Diverged,
    Overloaded,
    Owned,
    SessionExists,
    StoreUnavailable,
)
from tests.server.engine.world import NOTHING, Answer, Replica, lost, new_id, turned, until
from tests.service import zoo

PICKY = zoo.MODELS["picky"]
SOON = 0.5  # an interval that a test waits for, seconds; the default of 60 never comes


def x(seed: int, timesteps: int = 1) -> np.ndarray:
    return PICKY.draw(seed, timesteps)


def same(found: np.ndarray | None, *chunks: np.ndarray) -> None:
    """`found` is what the last chunk must give, if all were applied and nothing else."""
    np.testing.assert_allclose(found, PICKY.whole(*chunks)[-len(chunks[-1]) :], rtol=1e-5, atol=1e-6)


class Stepper:
    """Sends timestep after timestep of one session, each continuing the last."""

    def __init__(self, session: str = "s") -> None:
        self.session, self.ids, self.sent = session, [NOTHING], []

    @property
    def last(self) -> bytes:
        return self.ids[-1]

    async def step(self, replica: Replica, count: int = 1, **more) -> Answer:
        for _ in range(count):
            self.sent.append(x(len(self.sent)))
            id_ = new_id()
            call = replica.predict(
                self.session, self.sent[-1], id_=id_, after=self.last, **({"checkpointed": True} | more)
            )
            self.ids.append(id_)
            answer = await call.answer()
            same(answer.y, *self.sent)
        return answer


async def test_a_session_that_steps_on_is_answered_before_the_store_has_it(a):
    stepper = Stepper()
    told = [await stepper.step(a) for _ in range(5)]
    assert [answer.position for answer in told] == [1, 2, 3, 4, 5]
    assert [answer.durable for answer in told] == [1, 2, 2, 2, 2]  # the first is a create, the second makes it owned
    assert (await a.stands("s"))[1] == 2
    assert a.store.passed["commit"] == 2


async def test_it_is_written_within_the_interval_once_for_many_operations(here):
    a = await here.replica(checkpoint_seconds=SOON)
    stepper = Stepper()
    await stepper.step(a, 30)
    await until(lambda: _stands(a, 30))
    assert a.store.passed["commit"] < 30


async def test_replies_tell_what_the_store_has_by_now(a):
    stepper = Stepper()
    await stepper.step(a, 4)
    await a.engine.look("s")
    assert (await stepper.step(a)).durable == 4


async def test_whoever_asks_this_replica_sees_what_was_acknowledged(a):
    stepper = Stepper()
    await stepper.step(a, 4)
    found = await a.engine.look("s")
    assert found.header["position"][0] == 4
    assert found.header["id"][0].tobytes() == stepper.last


@pytest.mark.parametrize("kind", [Kind.PREDICT, Kind.RESET, Kind.END])
async def test_an_operation_that_is_committed_brings_what_came_before_it_to_the_store(a, kind):
    stepper = Stepper()
    await stepper.step(a, 4)
    if kind is Kind.PREDICT:
        answer = await stepper.step(a, checkpointed=False)
        assert (answer.position, answer.durable) == (5, 5)
    else:
        given = {0: a.engine.model.signature.states[0].fresh[None]} if kind is Kind.RESET else {}
        await a.change(kind, "s", after=stepper.last, given=given).answer()
    found = await a.engine.reader.look("s")
    assert found.header["recent"][0, 0].tobytes() == stepper.ids[4 if kind is Kind.PREDICT else -1]


async def test_another_replica_tells_that_it_is_owned_and_a_stream_there_takes_over(a, b):
    stepper = Stepper()
    await stepper.step(a, 3)
    durable, undurable = (await a.stands("s"))[0], stepper.last
    with pytest.raises(Owned) as owned:
        await b.predict("s", x(3), after=stepper.last).answer()
    assert 0 < owned.value.retry_after <= 1
    with pytest.raises(Behind) as behind:  # the second step is all that the store has
        await b.predict("s", x(3), after=stepper.last, checkpointed=True).answer()
    assert (behind.value.last_id, behind.value.position) == (durable, 2)
    replay = await b.predict("s", x(2), id_=undurable, after=durable, checkpointed=True).answer()
    same(replay.y, x(0), x(1), x(2))
    same((await b.predict("s", x(3), after=undurable, checkpointed=True).answer()).y, x(0), x(1), x(2), x(3))
    # The old owner does not know yet; what it acknowledges is not durable, and its checkpoint is refused.
    assert (await stepper.step(a)).durable == 2
    await a.engine.look("s")
    with pytest.raises(Behind) as fenced:
        await a.predict("s", x(4), after=stepper.last, checkpointed=True).answer()
    assert fenced.value.position == 3
    await b.engine.look("s")
    assert (await b.stands("s"))[1] == 4


async def test_an_owner_that_was_taken_over_gives_nobody_new_its_own_history(a, b):
    stepper = Stepper()
    await stepper.step(a, 4)
    after = (await a.stands("s"))[0]
    other = b.predict("s", x(9), after=after, checkpointed=True)
    await other.answer()
    with pytest.raises(Overloaded):  # it looks into the store first
        await a.predict("s", x(5), create=Create.NEW, checkpointed=True).answer()
    await a.engine.look("s")
    with pytest.raises(SessionExists) as exists:
        await a.predict("s", x(5), create=Create.NEW, checkpointed=True).answer()
    assert exists.value.metadata["last_id"] == other.id.hex()


async def test_what_names_nothing_takes_what_is_there_also_on_an_owner_that_was_taken_over(a, b):
    stepper = Stepper()
    await stepper.step(a, 4)
    await b.predict("s", x(9), after=(await a.stands("s"))[0], checkpointed=True).answer()
    same((await a.predict("s", x(5), checkpointed=True).answer()).y, x(0), x(1), x(9), x(5))


async def test_a_session_that_pauses_is_let_go(here, b):
    a = await here.replica(checkpoint_seconds=SOON)
    stepper = Stepper()
    await stepper.step(a, 5)
    await until(lambda: _free(a))
    assert (await stepper.step(b, checkpointed=False)).position == 6


async def test_an_owner_that_died_is_waited_for_no_longer_than_its_lease(a, b):
    stepper = Stepper()
    await stepper.step(a, 2)
    await a.stop()
    with pytest.raises(Owned):
        await b.predict("s", x(2), after=stepper.last).answer()
    b.clock.ahead_seconds += 601
    assert (await stepper.step(b, checkpointed=False)).position == 3


async def test_an_owner_whose_clock_was_days_ahead_is_waited_for_no_longer_than_others(a, b):
    stepper = Stepper()
    a.clock.ahead_seconds = 3 * 86_400
    await stepper.step(a, 2)
    await a.stop()
    assert (await stepper.step(b, checkpointed=False)).position == 3


@pytest.mark.parametrize("days", [-3, 3])
async def test_a_session_that_pauses_is_let_go_though_the_clock_was_stepped(here, b, days):
    a = await here.replica(checkpoint_seconds=SOON)
    stepper = Stepper()
    await stepper.step(a, 5)
    a.clock.stepped_seconds = days * 86_400
    await until(lambda: _free(a))
    assert (await stepper.step(b, checkpointed=False)).position == 6


async def test_a_drain_writes_all_and_lets_it_go(a, b):
    steppers = [Stepper(name) for name in "stuvw"]
    for stepper in steppers:
        await stepper.step(a, 4)
    await a.engine.drain()
    for stepper in steppers:
        assert (await stepper.step(b, checkpointed=False)).position == 5


async def test_a_stream_that_ends_has_its_sessions_written_and_let_go(a, b):
    stepper = Stepper()
    await stepper.step(a, 4)
    a.engine.leave(np.array([a.engine.slot("s")]))
    await until(lambda: _free(a))
    assert (await stepper.step(b, checkpointed=False)).position == 5


async def test_streams_that_own_nothing_leave_nothing_behind(a):
    await a.predict("s", x(0)).answer()
    for _ in range(3):
        a.engine.leave(np.array([a.engine.slot("s")]))
    assert a.engine._checkpoints._leaving == []


async def test_a_checkpoint_that_cannot_be_made_costs_its_sessions_a_replay_and_nobody_else(a):
    stepper, other = Stepper("s"), Stepper("t")
    for each in (stepper, other):
        await each.step(a, 3)
    gather = a.runner.gather

    def short_of_memory(slots):
        a.runner.gather = gather
        raise MemoryError

    a.runner.gather = short_of_memory
    assert (await a.engine.look("s")).header["position"][0] == 2
    with pytest.raises(Behind):
        await a.predict("s", x(3), after=stepper.last, checkpointed=True).answer()
    assert (await other.step(a)).position == 4


async def test_a_drain_of_an_engine_that_was_stopped_ends(a):
    await Stepper().step(a, 4)
    await a.stop()
    await a.engine.drain()


@pytest.mark.parametrize("written", [False, True])
async def test_a_retry_gets_the_same_reply_and_no_other_step(a, written):
    stepper = Stepper()
    told = await stepper.step(a, 4)
    if written:
        await a.engine.look("s")
    again = await a.predict("s", x(3), id_=stepper.last, checkpointed=True).answer()
    np.testing.assert_array_equal(again.y, told.y)
    assert (again.duplicate, again.position) == (True, 4)
    with pytest.raises(Diverged):
        await a.predict("s", x(9), id_=stepper.last, checkpointed=True).answer()
    with pytest.raises(AlreadyApplied):
        await a.predict("s", x(2), id_=stepper.ids[-2], checkpointed=True).answer()
    assert (await stepper.step(a)).position == 5


async def test_a_retry_tells_what_the_store_has_by_now_and_not_more(a):
    stepper = Stepper()
    await stepper.step(a, 4)
    again = await a.predict("s", x(3), id_=stepper.last, after=stepper.ids[-2], checkpointed=True).answer()
    assert (again.duplicate, again.position, again.durable) == (True, 4, 2)


async def test_a_committed_retry_is_answered_once_the_store_has_what_it_repeats(a):
    stepper = Stepper()
    await stepper.step(a, 4)
    with pytest.raises(StoreUnavailable):  # it is being written
        await a.predict("s", x(3), id_=stepper.last, after=stepper.ids[-2]).answer()
    await until(lambda: _stands(a, 4))
    again = await a.predict("s", x(3), id_=stepper.last, after=stepper.ids[-2]).answer()
    assert (again.duplicate, again.durable) == (True, 4)


@pytest.mark.parametrize("applied", [True, False])
async def test_a_committed_retry_does_not_overtake_its_own_commit(a, b, applied):
    stepper = Stepper()
    await stepper.step(a, 3)
    gate = a.store.hold("commit")
    first = a.predict("s", x(3), id_=(id_ := new_id()), after=stepper.last)
    await gate.here()
    again = a.predict("s", x(3), id_=id_, after=stepper.last)
    assert not await turned(lambda: again.done)
    if not applied:  # another replica takes the session over; what this one had not written is gone
        durable = (await b.stands("s"))[0]
        await b.predict("s", x(9), after=durable, checkpointed=True).answer()
    gate.open()
    for call in (first, again):
        if applied:
            assert (await call.answer()).durable == 4
        else:
            with pytest.raises(Owned):
                await call.answer()


async def test_what_was_durable_before_a_reset_is_not_after_it(a):
    stepper = Stepper()
    await stepper.step(a, 3)
    gate = a.store.hold("commit")
    given = {0: a.engine.model.signature.states[0].fresh[None]}
    reset = a.change(Kind.RESET, "s", after=stepper.last, given=given)
    await gate.here()
    stepper.sent.clear()
    stepper.ids.append(reset.id)
    answer = await stepper.step(a)
    assert (answer.position, answer.durable) == (1, 0)
    gate.open()
    await reset.answer()
    assert (await stepper.step(a)).durable == 0


async def test_a_retry_keeps_its_reply_while_the_session_goes_on(a):
    stepper = Stepper()
    await stepper.step(a, 3)
    again = a.predict("s", x(2), id_=stepper.last, after=stepper.ids[-2], checkpointed=True)
    later = a.predict("s", x(3), after=stepper.last, checkpointed=True)
    await later.answer()
    assert (await again.answer()).position == 3


async def test_a_retry_on_another_replica_gets_the_reply_that_the_checkpoint_brought(a, b):
    stepper = Stepper()
    told = await stepper.step(a, 4)
    await a.engine.look("s")
    again = await b.predict("s", x(3), id_=stepper.last).answer()
    np.testing.assert_array_equal(again.y, told.y)
    assert again.duplicate


async def test_a_checkpoint_whose_fate_is_unknown_is_told_as_behind(a):
    stepper = Stepper()
    await stepper.step(a, 4)
    gate = a.store.hold("commit")
    look = asyncio.create_task(a.engine.look("s"))
    await gate.here()
    gate.open(lost())
    assert (await look).header["position"][0] == 2
    with pytest.raises(Behind) as behind:
        await a.predict("s", x(4), after=stepper.last, checkpointed=True).answer()
    assert behind.value.position == 2


async def test_a_store_that_lost_the_session_is_told(here, a):
    stepper = Stepper()
    told = await stepper.step(a, 4)
    await here.forget()
    await a.engine.look("s")
    with pytest.raises(DataLoss):
        await a.predict("s", x(4), after=stepper.last, checkpointed=True, told_expire_ms=told.expire_ms).answer()


async def test_what_is_not_written_keeps_its_slot(here):
    a = await here.replica(slots=2)
    steppers = [Stepper("s"), Stepper("t")]
    for stepper in steppers:
        await stepper.step(a, 3)
    with pytest.raises(Overloaded):
        a.engine.slot("u")
    await a.engine.look("s")
    third = Stepper("u")
    await third.step(a, 2)
    for stepper in steppers:
        await stepper.step(a, checkpointed=False)


async def test_while_the_store_is_far_behind_nothing_more_is_acknowledged(here):
    a = await here.replica(checkpoint_seconds=SOON)
    stepper = Stepper()
    await stepper.step(a, 3)
    gate = a.store.hold("commit")
    await gate.here()
    a.clock.ahead_seconds += 60
    waiting = asyncio.create_task(stepper.step(a))
    for _ in range(20):
        assert not await turned(waiting.done)
    gate.open()
    assert (await waiting).position == 4


async def test_sessions_of_one_frame_are_each_answered_by_their_own_rule(a):
    old = Stepper("s")
    await old.step(a, 3)
    first, second = a.many(["s", "t"], np.stack([x(3), x(7)]), afters=[old.last, NOTHING], checkpointed=True)
    old_told, new_told = await first.answer(), await second.answer()
    same(old_told.y, x(0), x(1), x(2), x(3))
    same(new_told.y, x(7))
    assert (old_told.durable, new_told.durable, new_told.created) == (2, 1, True)
    assert (await a.stands("s"))[1], (await a.stands("t"))[1] == (2, 1)


async def test_a_what_if_sees_what_was_acknowledged_and_changes_nothing(a):
    stepper = Stepper()
    await stepper.step(a, 3)
    same((await a.predict("s", x(9), after=stepper.last, commit=False).answer()).y, x(0), x(1), x(2), x(9))
    assert (await stepper.step(a)).position == 4


async def test_a_session_of_a_short_life_is_committed_each_time(a):
    stepper = Stepper()
    told = [await stepper.step(a, ttl_ms=200_000) for _ in range(4)]
    assert [answer.durable for answer in told] == [1, 2, 3, 4]


async def test_many_sessions_are_written_in_pieces(here):
    a = await here.replica(slots=700)
    names, last = [f"s{index}" for index in range(700)], [NOTHING] * 700
    chunks = [np.stack([x(seed)] * 700) for seed in range(3)]
    for chunk in chunks:
        calls = a.many(names, chunk, afters=last, checkpointed=True)
        for call in calls:
            await call.answer()
        last = [call.id for call in calls]
    await a.engine.drain()
    for name in (names[0], names[256], names[699]):
        assert (await a.stands(name))[1] == 3


async def _stands(replica: Replica, position: int) -> bool:
    return (await replica.stands("s"))[1] == position


async def _free(replica: Replica) -> bool:
    found = await replica.engine.reader.look("s")
    return not found.header["owner"].any()
