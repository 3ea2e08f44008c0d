"""Commits of two replicas, interleaved: nothing is applied twice, and nothing to a history that it does not continue.

The model is zoo's "picky", h' = h / 2 + x and y = h': what it answers tells all that was applied, in its order.
"""

import dataclasses

import numpy as np
import pytest

from recurra.server.engine.operation import Create, Kind
from recurra.wire.errors import (
    AlreadyApplied,
    Behind,
    DataLoss,
    RecurraError,
    SessionClosed,
    SessionExpired,
    SessionNotFound,
    StateReset,
    StoreUnavailable,
)
from tests.server.engine.world import lost, new_id, turned, until
from tests.service import zoo

PICKY = zoo.MODELS["picky"]


def x(seed: int, timesteps: int = 1) -> np.ndarray:
    return PICKY.draw(seed, timesteps)


def answers(*chunks: np.ndarray) -> np.ndarray:
    """What the last chunk must give, if all were applied and nothing else."""
    return PICKY.whole(*chunks)[-len(chunks[-1]) :]


def same(found: np.ndarray | None, *chunks: np.ndarray) -> None:
    np.testing.assert_allclose(found, answers(*chunks), rtol=1e-6)


async def refused(call) -> RecurraError:
    with pytest.raises(RecurraError) as caught:
        await call.answer()
    return caught.value


# ---- an operation that names a refused one


@pytest.mark.parametrize("timesteps", [1, 40])
@pytest.mark.parametrize("fails", [False, True])
async def test_what_continues_a_refused_operation_is_never_applied(a, b, timesteps, fails):
    base = await a.predict("s", x(0)).answer()
    await a.predict("x", x(1)).answer()
    other = await b.predict("s", x(2), after=base.last_id).answer()
    reply = a.store.hold("commit reply")
    first = a.predict("s", x(3), after=base.last_id)
    await reply.here()  # the store has refused it, which is not known here yet
    run, epoch = a.run.hold("run"), a.engine.slots.epoch.sum()
    chunks = np.stack([x(4, timesteps), x(5, timesteps)])
    second, neighbour = a.many(["s", "x"], chunks, afters=[first.id, bytes(16)])
    await run.here()
    reply.open()
    await until(lambda: turned(lambda: a.engine.slots.epoch.sum() > epoch))  # now it is known, in the midst of the run
    run.open(RuntimeError("one row is bad") if fails else None)
    assert type(await refused(first)) is Behind
    same((await neighbour.answer()).y, x(1), x(5, timesteps))
    assert type(await refused(second)) is Behind
    assert await b.stands("s") == (other.last_id, 2)


async def test_a_chain_on_a_refused_operation_is_refused_to_its_end(a, b):
    base = await a.predict("s", x(0)).answer()
    other = await b.predict("s", x(1)).answer()
    reply = a.store.hold("commit reply")
    chain = [a.predict("s", x(2), after=base.last_id)]
    for at in range(3, 9):
        chain.append(a.predict("s", x(at), after=chain[-1].id))
    await reply.here()
    reply.open()
    assert {type(await refused(call)) for call in chain} == {Behind}
    assert await b.stands("s") == (other.last_id, 2)


async def test_what_is_behind_a_long_chunk_stays_behind_it_when_both_are_decided_anew(a, b):
    await a.predict("s", x(0)).answer()
    await a.predict("other", x(0)).answer()
    await b.predict("s", x(1)).answer()
    reply, piece = a.store.hold("commit reply"), a.run.hold("run")
    piece.open()
    first = a.predict("s", x(2))
    await reply.here()
    piece = a.run.hold("run")
    long, behind = a.predict("s", x(3, 70)), a.predict("s", x(4))
    await piece.here()
    reply.open()
    reads = a.store.passed["read reply"]
    await until(lambda: turned(lambda: a.store.passed["read reply"] > reads))
    same((await a.predict("other", x(5)).answer()).y, x(0), x(5))  # the session is read again, and the engine goes on
    piece.open()
    same((await first.answer()).y, x(0), x(1), x(2))
    same((await long.answer()).y, x(0), x(1), x(2), x(3, 70))
    same((await behind.answer()).y, x(0), x(1), x(2), x(3, 70), x(4))


async def test_a_reset_by_another_replica_is_told_to_what_rested_on_the_state_before(a, b):
    base = await a.predict("s", x(0)).answer()
    reset = await b.change(Kind.RESET, "s", whole=True, given={0: np.zeros((1, 2), np.float32)}).answer()
    assert type(await refused(a.predict("s", x(1), after=base.last_id))) is StateReset
    same((await a.predict("s", x(1), after=reset.last_id).answer()).y, x(1))


# ---- replies that were lost


async def test_an_operation_whose_reply_was_lost_while_another_replica_went_on_is_not_applied_twice(here, b, tmp_path):
    a, wire = await here.wired(tmp_path)
    await a.predict("s", x(0)).answer()
    wire.lose_replies()
    first = a.predict("s", x(1))
    await until(lambda: _is_last(b, "s", first.id))
    third = await b.predict("s", x(2)).answer()
    same(third.y, x(0), x(1), x(2))
    wire.cut()
    assert type(await refused(first)) is AlreadyApplied
    assert await b.stands("s") == (third.last_id, 3)


@pytest.mark.parametrize("count", [1, 2])
async def test_commits_resent_after_a_broken_connection_are_acknowledged_with_their_own_outputs(
    here, b, tmp_path, count
):
    a, wire = await here.wired(tmp_path)
    await a.predict("s", x(0)).answer()
    wire.lose_replies()
    flights = [a.predict("s", x(1 + at)) for at in range(count)]
    await until(lambda: _is_last(b, "s", flights[-1].id))
    before = a.runner.runs[:]
    wire.cut()
    for at, flight in enumerate(flights, 1):
        told = await flight.answer()
        same(told.y, *(x(seed) for seed in range(at + 1)))
        assert (told.position, told.last_id, told.duplicate) == (at + 1, flight.id, False)
    assert a.runner.runs == before
    assert await b.stands("s") == (flights[-1].id, count + 1)
    same((await a.predict("s", x(9)).answer()).y, *(x(seed) for seed in range(count + 1)), x(9))


async def test_commits_that_the_store_never_had_are_resent_after_a_broken_connection_and_applied_once(
    here, b, tmp_path
):
    a, wire = await here.wired(tmp_path)
    await a.predict("s", x(0)).answer()
    wire.cut()
    flights = [a.predict("s", x(1 + at)) for at in range(4)]
    for at, flight in enumerate(flights, 1):
        told = await flight.answer()
        same(told.y, *(x(seed) for seed in range(at + 1)))
        assert told.position == at + 1
    assert await b.stands("s") == (flights[-1].id, 5)


async def test_a_retry_of_a_commit_that_nobody_answered_for_is_told_what_the_first_try_gave(a, b):
    await a.predict("s", x(0)).answer()
    reply = a.store.hold("commit reply")
    id_ = new_id()
    first = a.predict("s", x(1), id_=id_)
    await reply.here()
    reply.open(lost())
    assert type(await refused(first)) is StoreUnavailable
    for replica in (a, b):
        again = await replica.predict("s", x(1), id_=id_).answer()
        same(again.y, x(0), x(1))
        assert (again.position, again.duplicate) == (2, True)
    assert await b.stands("s") == (id_, 2)


async def test_a_commit_behind_one_that_nobody_answered_for_keeps_its_own_answer(a, b):
    await a.predict("s", x(0)).answer()
    replies = [a.store.hold("commit reply"), a.store.hold("commit reply")]
    first = a.predict("s", x(1))
    await replies[0].here()
    second = a.predict("s", x(2), after=first.id)
    await until(lambda: _is_last(b, "s", second.id))
    replies[0].open(lost())
    assert type(await refused(first)) is StoreUnavailable
    replies[1].open()
    told = await second.answer()
    same(told.y, x(0), x(1), x(2))
    same((await a.predict("s", x(3), after=second.id).answer()).y, x(0), x(1), x(2), x(3))


async def test_an_operation_repeated_while_its_first_try_is_in_flight_is_applied_once(a, b):
    await a.predict("s", x(0)).answer()
    reply, id_ = a.store.hold("commit reply"), new_id()
    first = a.predict("s", x(1), id_=id_)
    await reply.here()
    again = a.predict("s", x(1), id_=id_)
    elsewhere = await b.predict("s", x(1), id_=id_).answer()
    assert elsewhere.duplicate
    reply.open()
    assert not (await first.answer()).duplicate
    told = await again.answer()
    assert told.duplicate
    same(told.y, x(0), x(1))
    assert await b.stands("s") == (id_, 2)


# ---- pipelining


async def test_a_sessions_next_operations_run_while_earlier_commits_are_in_flight(a, b):
    await a.predict("s", x(0)).answer()
    replies = [a.store.hold("commit reply") for _ in range(2)]
    calls = [a.predict("s", x(at)) for at in range(1, 6)]
    await replies[0].here()
    later = [call.id for call in calls[1:]]
    await until(lambda: _is_one_of(b, "s", later))  # the second is committed, the first is not acknowledged
    assert not any(call.done for call in calls)
    for reply in replies:
        reply.open()
    for at, call in enumerate(calls, 1):
        told = await call.answer()
        same(told.y, *(x(seed) for seed in range(at + 1)))
        assert told.position == at + 1
    assert len(a.runner.runs) == 6


async def test_a_conflict_in_the_first_of_several_in_flight_has_all_decided_anew_in_their_order(a, b):
    await a.predict("s", x(0)).answer()
    await b.predict("s", x(1)).answer()
    reply = a.store.hold("commit reply")
    calls = [a.predict("s", x(at)) for at in range(2, 7)]
    await reply.here()
    assert not any(call.done for call in calls)
    reply.open()
    for at, call in enumerate(calls, 2):
        told = await call.answer()
        same(told.y, *(x(seed) for seed in range(at + 1)))
        assert told.position == at + 1
    assert await b.stands("s") == (calls[-1].id, 7)


async def test_two_replicas_that_keep_overtaking_each_other_apply_each_operation_once(a, b):
    await a.predict("s", x(0)).answer()
    calls = []
    for at in range(12):
        replica = (a, b)[at % 2]
        calls.append(replica.predict("s", x(at + 1)))
        if at % 3 == 2:
            await calls[-1].answer()
    told = []
    for at, call in enumerate(calls):
        told.append(((await call.answer()).position, at + 1))
    order = [seed for _, seed in sorted(told)]
    assert [position for position, _ in sorted(told)] == list(range(2, 14))
    for position, seed in told:
        call = calls[seed - 1]
        same((await call.answer()).y, x(0), *(x(other) for other in order[: position - 1]))


async def test_a_conflict_of_one_row_leaves_its_neighbours_in_the_batch_alone(a, b):
    names = [f"s{at}" for at in range(5)]
    for call in a.many(names, np.stack([x(at) for at in range(5)])):
        await call.answer()
    await b.predict("s2", x(50)).answer()
    calls = a.many(names, np.stack([x(10 + at) for at in range(5)]))
    for at, call in enumerate(calls):
        told = await call.answer()
        same(told.y, x(at), *([x(50)] if at == 2 else []), x(10 + at))
    assert a.runner.runs[-2:] == [(5, 1), (1, 1)]


# ---- what-if


async def test_a_what_if_is_answered_from_what_is_committed_and_changes_nothing(a, b):
    base = await a.predict("s", x(0)).answer()
    other = await b.predict("s", x(1)).answer()
    told = await a.predict("s", x(2), commit=False).answer()  # the slot here still stands at `base`
    same(told.y, x(0), x(1), x(2))
    assert told.position == 3
    assert await b.stands("s") == (other.last_id, 2)
    same((await a.predict("s", x(3), after=other.last_id).answer()).y, x(0), x(1), x(3))
    assert base.position == 1


async def test_a_what_if_of_a_session_that_is_not_there_starts_fresh_and_begins_none(a):
    told = await a.predict("nobody", x(1, 3), commit=False).answer()
    same(told.y, x(1, 3))
    assert await a.engine.reader.look("nobody") is None
    assert (await a.predict("nobody", x(2)).answer()).created


async def test_a_what_if_waits_for_the_commit_that_it_rests_on(a, b):
    await a.predict("s", x(0)).answer()
    reply = a.store.hold("commit reply")
    first = a.predict("s", x(1))
    await reply.here()
    guess = a.predict("s", x(2), after=first.id, commit=False)
    runs = len(a.runner.runs)
    await until(lambda: turned(lambda: len(a.runner.runs) > runs))
    assert not guess.done
    reply.open()
    same((await guess.answer()).y, x(0), x(1), x(2))
    assert await b.stands("s") == (first.id, 2)


async def test_a_what_if_on_a_commit_that_fails_is_decided_anew(a, b):
    base = await a.predict("s", x(0)).answer()
    other = await b.predict("s", x(1)).answer()
    reply = a.store.hold("commit reply")
    first = a.predict("s", x(2), after=base.last_id)
    await reply.here()
    runs = len(a.runner.runs)
    named = a.predict("s", x(3), after=first.id, commit=False)
    await until(lambda: turned(lambda: len(a.runner.runs) > runs))
    anywhere = a.predict("s", x(4), commit=False)
    reply.open()
    assert type(await refused(first)) is Behind
    assert type(await refused(named)) is Behind
    same((await anywhere.answer()).y, x(0), x(1), x(4))
    assert await b.stands("s") == (other.last_id, 2)


# ---- sessions that are gone


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in a slot", "not in a slot"])
@pytest.mark.parametrize("named", [False, True])
async def test_a_session_that_was_told_to_live_on_and_is_gone_is_data_loss(here, a, b, elsewhere, named):
    base = await a.predict("s", x(0)).answer()
    await here.forget()
    replica = b if elsewhere else a
    call = replica.predict(
        "s", x(1), after=base.last_id if named else bytes(16), told_expire_ms=base.expire_ms, create=Create.IF_MISSING
    )
    assert type(await refused(call)) is DataLoss
    assert await a.engine.reader.look("s") is None


async def test_a_session_in_a_slot_that_the_store_lost_is_data_loss_to_a_client_that_was_told_nothing(here, a):
    await a.predict("s", x(0)).answer()
    await here.forget()
    assert type(await refused(a.predict("s", x(1)))) is DataLoss


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in a slot", "not in a slot"])
async def test_a_session_that_has_expired_may_begin_anew(here, a, b, elsewhere):
    base = await a.predict("s", x(0)).answer()
    await here.forget()
    replica = b if elsewhere else a
    replica.clock.ahead_seconds = 100_000.0
    named = replica.predict("s", x(1), after=base.last_id, told_expire_ms=base.expire_ms)
    assert type(await refused(named)) is SessionExpired
    never = replica.predict("s", x(1), told_expire_ms=base.expire_ms, create=Create.NEVER)
    assert type(await refused(never)) is SessionExpired
    told = await replica.predict("s", x(2), told_expire_ms=base.expire_ms).answer()
    assert (told.position, told.created) == (1, True)
    same(told.y, x(2))


@pytest.mark.parametrize("named", [True, False])
async def test_a_session_that_expires_between_its_run_and_its_commit_is_expired_or_begins_anew(here, a, named):
    base = await a.predict("s", x(0)).answer()
    commit = a.store.hold("commit")
    call = a.predict("s", x(1), after=base.last_id if named else bytes(16))
    await commit.here()
    await here.forget()
    a.clock.stepped_seconds = 100_000.0
    commit.open()
    if named:
        assert type(await refused(call)) is SessionExpired
        assert await a.engine.reader.look("s") is None
    else:
        told = await call.answer()
        assert (told.position, told.created) == (1, True)
        same(told.y, x(1))


async def test_a_session_that_never_was_is_not_found_where_it_may_not_begin(a):
    assert type(await refused(a.predict("s", x(0), create=Create.NEVER))) is SessionNotFound
    assert type(await refused(a.predict("s", x(0), after=new_id()))) is SessionNotFound


# ---- END, and what comes after


async def test_a_session_ended_in_flight_begins_anew_behind_its_end(a, b):
    await a.predict("s", x(0)).answer()
    reply = a.store.hold("commit reply")
    end = a.change(Kind.END, "s")
    await reply.here()
    anew = a.predict("s", x(1, 2), after=end.id)
    await until(lambda: _is_last(b, "s", anew.id))
    reply.open()
    await end.answer()
    told = await anew.answer()
    assert (told.position, told.created) == (2, True)
    same(told.y, x(1, 2))
    assert await b.stands("s") == (anew.id, 2)


async def test_an_ended_session_is_closed_to_whom_does_not_know_of_its_end(a, b):
    base = await a.predict("s", x(0)).answer()
    end = await b.change(Kind.END, "s").answer()
    for replica in (a, b):
        assert type(await refused(replica.predict("s", x(1)))) is SessionClosed
        assert type(await refused(replica.predict("s", x(1), after=base.last_id))) is SessionClosed
    again = await a.change(Kind.END, "s", id_=end.last_id).answer()
    assert again.duplicate
    same((await a.predict("s", x(2), after=end.last_id).answer()).y, x(2))


async def test_what_begins_anew_behind_an_end_that_fails_is_decided_anew(a, b):
    base = await a.predict("s", x(0)).answer()
    other = await b.predict("s", x(1)).answer()
    reply = a.store.hold("commit reply")
    end = a.change(Kind.END, "s", after=base.last_id)
    await reply.here()
    anew = a.predict("s", x(2), after=end.id)
    reply.open()
    assert type(await refused(end)) is Behind
    assert type(await refused(anew)) is Behind
    same((await b.predict("s", x(3), after=other.last_id).answer()).y, x(0), x(1), x(3))


# ---- a predict that begins the session anew, or that it ends with


async def test_a_session_begun_anew_starts_from_the_fresh_state_in_a_life_of_its_own(a, b):
    first = await a.predict("s", x(0, 2)).answer()
    anew = await b.predict("s", x(1), create=Create.ANEW).answer()
    assert (anew.position, anew.created) == (1, True)
    same(anew.y, x(1))
    going_on = await a.predict("s", x(2), create=Create.NEVER).answer()
    assert (going_on.position, going_on.created) == (2, False)
    same(going_on.y, x(1), x(2))
    assert type(await refused(a.predict("s", x(3), after=first.last_id))) is Behind


async def test_sessions_begun_anew_run_beside_others_in_one_batch(a):
    await a.predict("s", x(0)).answer()
    await a.predict("t", x(1)).answer()
    run = a.run.hold("run")
    others = a.predict("u", x(2))
    await run.here()
    anew, on = a.predict("s", x(3), create=Create.ANEW), a.predict("t", x(4))
    run.open()
    await others.answer()
    same((await anew.answer()).y, x(3))
    same((await on.answer()).y, x(1), x(4))
    assert a.runner.runs[-1] == (2, 1)


async def test_what_comes_behind_a_session_begun_anew_in_flight_goes_on_from_it(a):
    await a.predict("s", x(0)).answer()
    reply = a.store.hold("commit reply")
    anew = a.predict("s", x(1), create=Create.ANEW)
    await reply.here()
    behind = a.predict("s", x(2), create=Create.NEVER)
    reply.open()
    await anew.answer()
    same((await behind.answer()).y, x(1), x(2))


async def test_a_session_that_is_lost_meanwhile_may_still_begin_anew(here, a):
    await a.predict("s", x(0)).answer()
    await here.forget()
    told = await a.predict("s", x(1), create=Create.ANEW).answer()
    same(told.y, x(1))


async def test_a_predict_that_closes_its_session_is_answered_and_closed_in_one_commit(a, b):
    await a.predict("s", x(0)).answer()
    id_ = new_id()
    last = await a.predict("s", x(1), id_=id_, closes=True).answer()
    assert last.position == 2
    same(last.y, x(0), x(1))
    for replica in (a, b):
        assert type(await refused(replica.predict("s", x(2)))) is SessionClosed
        again = await replica.predict("s", x(1), id_=id_, closes=True).answer()
        assert again.duplicate
        same(again.y, x(0), x(1))
    same((await a.predict("s", x(3), create=Create.ANEW).answer()).y, x(3))


async def test_a_predict_that_closes_what_it_begins_leaves_a_closed_session(a):
    same((await a.predict("s", x(0), create=Create.ANEW, closes=True).answer()).y, x(0))
    assert type(await refused(a.predict("s", x(1), create=Create.NEVER))) is SessionClosed


# ---- another version of the model


async def test_a_reply_kept_by_a_version_with_other_outputs_is_already_applied_and_the_engine_lives(here, a):
    id_ = new_id()
    first = await a.predict("s", x(0), id_=id_).answer()
    signature = here.model.signature
    outputs = (*signature.outputs, dataclasses.replace(signature.outputs[0], name="second"))
    newer = dataclasses.replace(here.model, signature=dataclasses.replace(signature, outputs=outputs))
    c = await here.replica(model=newer)
    error = await refused(c.predict("s", x(0), id_=id_))
    assert type(error) is AlreadyApplied
    assert error.metadata["position"] == str(first.position)
    same((await a.predict("s", x(1), after=id_).answer()).y, x(0), x(1))
    reset = c.change(Kind.RESET, "s", whole=True, given={0: np.zeros((1, 2), np.float32)})
    assert (await reset.answer()).position == 0


async def _is_one_of(replica, session: str, ids: list[bytes]) -> bool:
    return (await replica.stands(session))[0] in ids


async def _is_last(replica, session: str, id_: bytes) -> bool:
    return (await replica.stands(session))[0] == id_
