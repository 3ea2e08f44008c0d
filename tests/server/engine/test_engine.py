"""The engine's turns: who is served while others wait, what fails alone, and how it all ends.

"picky" of the zoo answers for its whole history (h' = h / 2 + x, y = h'); "lstm" has two states.
"""

import asyncio
import gc

import numpy as np
import pytest

from recurra import models
from recurra.server.engine.chunks import PIECE
from recurra.server.engine.operation import Kind
from recurra.wire.errors import (
    DeadlineExceeded,
    Diverged,
    Draining,
    InvalidArgument,
    Overloaded,
    RecurraError,
    RunFailed,
    StoreUnavailable,
)
from tests.server.engine.world import lost, new_id, turned, until, world
from tests.service import zoo

PICKY, LSTM = zoo.MODELS["picky"], zoo.MODELS["lstm"]
HUGE = np.float32(3.4e38)


@pytest.fixture(scope="module")
def lstm(repository):
    return models.load(repository / "lstm", provider="cpu")


def x(seed: int, timesteps: int = 1) -> np.ndarray:
    return PICKY.draw(seed, timesteps)


def same(found: np.ndarray | None, *chunks: np.ndarray) -> None:
    """`found` is what the last chunk must give, if all were applied and nothing else."""
    np.testing.assert_allclose(found, PICKY.whole(*chunks)[-len(chunks[-1]) :], rtol=1e-5, atol=1e-6)


async def refused(call) -> RecurraError:
    with pytest.raises(RecurraError) as caught:
        await call.answer()
    return caught.value


# ---- who is served while others wait


@pytest.mark.parametrize("what", ["commit", "read", "commit reply"])
async def test_stateless_predicts_are_answered_while_the_store_is_stalled(a, what):
    names = [f"s{at}" for at in range(5)]
    if what != "read":
        for name in names:
            await a.predict(name, x(0)).answer()
    gate = a.store.hold(what)
    calls = [a.predict(names[0], x(1))]
    await gate.here()
    for name in names[1:]:
        runs = len(a.runner.runs)
        calls.append(a.predict(name, x(1)))
        told = await a.predict("", x(2, 3), commit=False).answer()
        same(told.y, x(2, 3))
        assert told.position == 0
        assert len(a.runner.runs) <= runs + 2
    assert not any(call.done for call in calls)
    gate.open()
    for call in calls:
        same((await call.answer()).y, *([x(0)] if what != "read" else []), x(1))


async def test_operations_that_came_too_late_do_not_keep_a_good_one_behind_them_waiting(here):
    a = await here.replica(max_batch=4)
    for name in ("late", "good"):
        await a.predict(name, x(0)).answer()
    late = [a.predict("late", x(at), wait_seconds=-1.0) for at in range(40)]
    others = [a.predict(f"late {at}", x(at), wait_seconds=-1.0) for at in range(40)]
    same((await a.predict("good", x(1)).answer()).y, x(0), x(1))
    for call in late + others:
        assert type(await refused(call)) is DeadlineExceeded
    same((await a.predict("late", x(1)).answer()).y, x(0), x(1))


async def test_one_session_with_many_operations_queued_does_not_starve_the_others(here):
    a = await here.replica(max_batch=8)
    await a.predict("hog", x(0)).answer()
    await a.predict("other", x(0)).answer()
    hogs = [a.predict("hog", x(1)) for _ in range(800)]
    served = 0
    for at in range(1, 6):
        same((await a.predict("other", x(at)).answer()).y, *(x(seed) for seed in range(at + 1)))
        served = sum(hog.done for hog in hogs)
    assert served < 80
    for hog in hogs[::-1]:
        a.engine.cancel(hog.block)
    done = [hog for hog in hogs if hog.done and not hog.block.errors]
    assert (await a.predict("hog", x(1)).answer()).position >= len(done) + 2


async def test_operations_that_come_in_any_turn_of_the_event_loop_are_all_answered(here):
    a = await here.replica(slots=256)
    rng, calls = np.random.default_rng(0), []
    for at in range(200):
        for _ in range(rng.integers(0, 9)):
            await turned(lambda: False)
        calls.append(a.predict(f"s{at}", x(at)))
        if rng.random() < 0.3:
            await calls[rng.integers(len(calls))].answer()
    for at, call in enumerate(calls):
        same((await call.answer()).y, x(at))


# ---- long chunks


LONG = 3 * PIECE + 4


async def test_a_long_chunk_gives_what_one_run_gives(a):
    await a.predict("s", x(0)).answer()
    told = await a.predict("s", x(1, LONG)).answer()
    same(told.y, x(0), x(1, LONG))
    assert told.position == LONG + 1
    assert [timesteps for _, timesteps in a.runner.runs] == [1, PIECE, PIECE, PIECE, 4]
    last = await a.predict("s", x(2, LONG), return_sequences=False).answer()
    np.testing.assert_allclose(last.y, PICKY.whole(x(0), x(1, LONG), x(2, LONG))[-1], rtol=1e-5)


async def test_long_chunks_of_many_sessions_are_run_together(a):
    names = [f"s{at}" for at in range(6)]
    for name in names:
        await a.predict(name, x(0)).answer()
    before = len(a.runner.runs)
    for row, call in enumerate(a.many(names, np.stack([x(at, LONG) for at in range(6)]))):
        same((await call.answer()).y, x(0), x(row, LONG))
    assert a.runner.runs[before:] == [(6, PIECE)] * 3 + [(6, 4)]


async def test_other_sessions_are_served_while_a_long_chunk_is_run(a):
    for name in ("long", "short"):
        await a.predict(name, x(0)).answer()
    pieces = [a.run.hold("run")]
    long = a.predict("long", x(1, LONG))
    behind = a.predict("long", x(2))
    await pieces[0].here()
    for at in range(1, 4):
        same((await a.predict("short", x(at)).answer()).y, *(x(seed) for seed in range(at + 1)))
    same((await a.predict("new", x(5)).answer()).y, x(5))
    assert not long.done
    assert not behind.done
    pieces[0].open()
    same((await long.answer()).y, x(0), x(1, LONG))
    same((await behind.answer()).y, x(0), x(1, LONG), x(2))


async def test_long_chunks_that_wait_for_one_that_is_run_are_bounded(here):
    a = await here.replica(queue=4)
    gate = a.run.hold("run")
    first = a.predict("first", x(0, LONG))
    await gate.here()
    calls = []
    for at in range(4):
        calls.append(a.predict(f"s{at}", x(at, LONG)))
        await until(lambda at=at: turned(lambda: a.engine.slots.ready[a.engine.slot(f"s{at}")]))
    for waited, told in ((0.0, 0.05), (2.0, 2.0), (100.0, 5.0)):  # as long as the first has waited, within reason
        a.clock.ahead_seconds = waited
        with pytest.raises(Overloaded) as refused:
            a.predict("one more", x(4, LONG))
        assert told <= refused.value.retry_after < told + 1
    a.clock.ahead_seconds = 0.0
    gate.open()
    same((await first.answer()).y, x(0, LONG))
    for at, call in enumerate(calls):
        same((await call.answer()).y, x(at, LONG))


async def test_a_long_chunk_that_nobody_waits_for_ends_after_its_piece_and_changes_nothing(a):
    base = await a.predict("s", x(0)).answer()
    gates = [a.run.hold("run"), a.run.hold("run")]
    gates[0].open()
    long = a.predict("s", x(1, LONG))
    await gates[1].here()
    a.engine.cancel(long.block)
    gates[1].open()
    assert type(await refused(long)) is DeadlineExceeded
    assert [timesteps for _, timesteps in a.runner.runs] == [1, PIECE, PIECE]
    assert await a.stands("s") == (base.last_id, 1)
    same((await a.predict("s", x(2)).answer()).y, x(0), x(2))


async def test_a_long_chunk_that_fails_in_a_later_piece_fails_alone_and_changes_nothing(a):
    names, bad = ["s0", "s1", "s2"], x(1, LONG)
    bad[-1, 0] = 2000.0
    for name in names:
        await a.predict(name, x(0)).answer()
    calls = a.many(names, np.stack([x(1, LONG), bad, x(2, LONG)]))
    same((await calls[0].answer()).y, x(0), x(1, LONG))
    same((await calls[2].answer()).y, x(0), x(2, LONG))
    assert type(await refused(calls[1])) is RunFailed
    same((await a.predict("s1", x(3)).answer()).y, x(0), x(3))


# ---- rows that fail


async def test_a_row_whose_state_overflows_fails_alone_and_the_others_are_not_run_again(a):
    names = [f"s{at}" for at in range(5)]
    first, chunk = np.stack([x(at) for at in range(5)]), np.stack([x(9 + at) for at in range(5)])
    first[2, 0, 1] = chunk[2, 0, 1] = HUGE
    for call in a.many(names, first):
        await call.answer()
    before = len(a.runner.runs)
    calls = a.many(names, chunk)
    for row, call in enumerate(calls):
        if row == 2:
            assert type(await refused(call)) is RunFailed
        else:
            same((await call.answer()).y, first[row], chunk[row])
    assert a.runner.runs[before:] == [(5, 1)]
    assert (await a.stands("s2"))[1] == 1
    same((await a.predict("s2", x(3)).answer()).y, first[2], x(3))


async def test_a_row_on_which_the_model_raises_fails_alone(a):
    names, chunk = [f"s{at}" for at in range(5)], np.stack([x(at) for at in range(5)])
    chunk[3, 0, 0] = 2000.0
    calls = a.many(names, chunk)
    for row, call in enumerate(calls):
        if row == 3:
            assert type(await refused(call)) is RunFailed
        else:
            same((await call.answer()).y, chunk[row])
    assert a.runner.runs == [(5, 1)] + [(1, 1)] * 5
    assert (await a.predict("s3", x(3)).answer()).created


async def test_a_row_whose_state_is_not_finite_is_told_so_of_a_what_if_too(a):
    bad = x(0)
    bad[0, 1] = np.inf
    for more in ({}, {"commit": False}):
        assert type(await refused(a.predict("s", bad, **more))) is RunFailed
    assert type(await refused(a.predict("", bad, commit=False))) is RunFailed
    assert await a.engine.reader.look("s") is None


async def test_a_session_that_the_store_does_not_give_fails_alone_and_is_asked_for_again(here):
    a = await here.replica()
    gate = a.store.hold("read reply")
    call = a.predict("s", x(0))
    await gate.here()
    gate.open(lost())
    assert type(await refused(call)) is StoreUnavailable
    same((await a.predict("s", x(1)).answer()).y, x(1))


async def test_an_id_that_came_with_another_input_is_diverged(a):
    id_ = new_id()
    await a.predict("s", x(0), id_=id_).answer()
    assert type(await refused(a.predict("s", x(1), id_=id_))) is Diverged
    assert (await a.predict("s", x(0), id_=id_).answer()).duplicate


# ---- slots that change hands


@pytest.mark.parametrize("slots", [1, 3])
async def test_sessions_that_lost_their_slots_come_back_with_their_state(here, slots):
    a = await here.replica(slots=slots)
    for turn in range(4):
        for at in range(7):
            told = await a.predict(f"s{at}", x(10 * turn + at)).answer()
            same(told.y, *(x(10 * before + at) for before in range(turn + 1)))
            assert (told.position, told.created) == (turn + 1, turn == 0)


async def test_a_slot_that_was_given_to_another_session_never_answers_for_the_first(here):
    a = await here.replica(slots=1)
    ids = [new_id() for _ in range(3)]
    for at in range(3):
        await a.predict(f"s{at}", x(at), id_=ids[at]).answer()
    for at in (0, 1, 2, 1, 0):
        told = await a.predict(f"s{at}", x(at), id_=ids[at]).answer()
        same(told.y, x(at))
        assert told.duplicate
        assert a.engine.slots.identity(1) == a.engine.slots.identities[a.engine.slot(f"s{at}")].tobytes()
    told = await a.predict("nobody", x(5), commit=False).answer()
    same(told.y, x(5))


async def test_sessions_with_operations_in_flight_keep_their_slots(here):
    a = await here.replica(slots=2)
    gate = a.store.hold("commit reply")
    calls = [a.predict(name, x(at)) for at, name in enumerate(("s0", "s1"))]
    await gate.here()
    with pytest.raises(Overloaded):
        a.predict("s2", x(2))
    gate.open()
    for at, call in enumerate(calls):
        same((await call.answer()).y, x(at))
    same((await a.predict("s2", x(2)).answer()).y, x(2))
    same((await a.predict("s0", x(3)).answer()).y, x(0), x(3))


async def test_a_session_cancelled_while_it_is_read_leaves_a_slot_that_is_right(here):
    a, b = await here.replica(slots=1), await here.replica()
    await b.predict("s0", x(0)).answer()
    gate = a.store.hold("read reply")
    gone = a.predict("s0", x(1))
    await gate.here()
    a.engine.cancel(gone.block)
    assert type(await refused(gone)) is DeadlineExceeded
    with pytest.raises(Overloaded):
        a.predict("s1", x(1))
    gate.open()
    await until(lambda: turned(lambda: a.engine.slots.ready[1]))
    same((await a.predict("s1", x(1)).answer()).y, x(1))
    same((await a.predict("s0", x(2)).answer()).y, x(0), x(2))


# ---- reset, set


async def test_a_reset_starts_from_fresh_or_from_what_it_brings_and_its_duplicate_is_told_the_same(here, lstm):
    async with world(here.url, lstm, here.states) as with_lstm:
        a = await with_lstm.replica()
        first, then = LSTM.draw(0, 3), LSTM.draw(1, 2)
        fresh = {at: state.fresh[None] for at, state in enumerate(lstm.signature.states)}
        brought = {
            at: np.full((1, *state.shape), 0.25 + at, np.float32) for at, state in enumerate(lstm.signature.states)
        }
        await a.predict("s", first).answer()

        reset = await a.change(Kind.RESET, "s", whole=True, given=fresh).answer()
        assert reset.position == 0
        np.testing.assert_allclose((await a.predict("s", then).answer()).y, LSTM.whole(then), **zoo.CLOSE)

        id_ = new_id()
        for turn in range(3):
            told = await a.change(Kind.SET, "s", id_=id_, given=brought).answer()
            assert (told.position, told.last_id, told.duplicate) == (0, id_, turn > 0)
        state = tuple(brought[at][0] for at in range(2))
        found = (await a.predict("s", then, after=id_).answer()).y
        np.testing.assert_allclose(found, LSTM.whole(then, state=state), **zoo.CLOSE)


async def test_a_reset_of_one_state_leaves_the_others(here, lstm):
    async with world(here.url, lstm, here.states) as with_lstm:
        a = await with_lstm.replica()
        first, then = LSTM.draw(0, 3), LSTM.draw(1, 2)
        await a.predict("s", first).answer()
        cell = lstm.signature.states[1]
        reply = a.store.hold("commit reply")
        reset = a.change(Kind.RESET, "s", given={1: cell.fresh[None]})
        after = a.predict("s", then, after=reset.id, return_states=True)
        await reply.here()
        reply.open()
        assert (await reset.answer()).position == 0
        hidden, _ = LSTM.after(first)
        state = (hidden, np.zeros_like(LSTM.fresh[1]))
        told = await after.answer()
        np.testing.assert_allclose(told.y, LSTM.whole(then, state=state), **zoo.CLOSE)
        for found, expected in zip(told.states, LSTM.after(then, state=state), strict=True):
            np.testing.assert_allclose(found.ravel(), expected.ravel(), **zoo.CLOSE)
        assert told.position == 2


async def test_resets_of_many_sessions_at_once_bring_each_its_own_state(a):
    names = [f"s{at}" for at in range(4)]
    for call in a.many(names, np.stack([x(at) for at in range(4)])):
        await call.answer()
    brought = np.arange(8, dtype=np.float32).reshape(4, 2)
    block = a.block(names, kind=Kind.SET, given={0: brought})
    a.engine.submit(block)
    calls = a.many(names, np.zeros((4, 1, 2), np.float32))
    for at, call in enumerate(calls):
        np.testing.assert_array_equal((await call.answer()).y, brought[None, at] / 2)
    assert block.done.done()


# ---- the end


async def test_what_is_cancelled_in_the_queue_is_never_run(a):
    base = await a.predict("s", x(0)).answer()
    gate = a.run.hold("run")
    first = a.predict("s", x(1))
    await gate.here()
    others = [a.predict("s", x(at)) for at in range(2, 6)]
    for call in others[:3]:
        a.engine.cancel(call.block)
        assert type(await refused(call)) is DeadlineExceeded
    a.engine.cancel(first.block)  # it was started: it goes on
    gate.open()
    same((await first.answer()).y, x(0), x(1))
    told = await others[3].answer()
    same(told.y, x(0), x(1), x(5))
    assert (base.position, told.position) == (1, 3)
    assert len(a.runner.runs) == 3


async def test_draining_waits_for_all_that_was_taken_and_takes_nothing_new(a):
    await a.predict("s", x(0)).answer()
    reply = a.store.hold("commit reply")
    calls = [a.predict("s", x(1)), a.predict("s", x(2)), a.predict("t", x(3, LONG))]
    await reply.here()
    block = a.block(["s"], xs=x(4)[None])
    draining = asyncio.create_task(a.engine.drain())
    await turned(lambda: True)
    with pytest.raises(Draining):
        a.engine.submit(block)
    assert not draining.done()
    reply.open()
    await draining
    assert all(call.done for call in calls)
    same((await calls[1].answer()).y, x(0), x(1), x(2))
    same((await calls[2].answer()).y, x(3, LONG))
    await a.engine.drain()


@pytest.mark.parametrize("held", ["run", "commit reply", "read reply"])
@pytest.mark.parametrize("timesteps", [1, LONG])
async def test_an_engine_that_is_stopped_refuses_all_that_is_unanswered(a, held, timesteps):
    if held != "read reply":
        for name in ("s", "t"):
            await a.predict(name, x(0)).answer()
    gate = (a.run if held == "run" else a.store).hold(held)
    calls = [a.predict("s", x(1, timesteps)), *a.many(["s", "t"], np.stack([x(2), x(3)]))]
    await gate.here()
    calls += [a.predict("s", x(4)), a.predict("t", x(5, LONG)), a.predict("u", x(6))]
    block = a.block(["v"], xs=x(7)[None])
    await a.stop()
    for call in calls:
        assert type(await refused(call)) is Draining
        a.engine.cancel(call.block)  # as whoever waited may do, being stopped too
        assert call.block.pending == 0
    with pytest.raises(Draining):
        a.engine.submit(block)
    await a.engine.drain()


async def test_what_the_store_says_to_an_engine_that_was_stopped_disturbs_nobody(a):
    failures: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    for name in ("s", "t"):
        await a.predict(name, x(0)).answer()
    replies = [a.store.hold("commit reply"), a.store.hold("commit reply")]
    calls = [a.predict("s", x(1))]
    await replies[0].here()
    calls.append(a.predict("t", x(1)))
    await until(lambda: turned(lambda: a.store.passed["commit"] == 4))
    await a.stop()
    for reply in replies:
        reply.open(lost())
    for call in calls:
        assert type(await refused(call)) is Draining
    for _ in range(9):
        await turned(lambda: True)
    del a.engine
    gc.collect()
    assert failures == []


async def test_an_operation_that_an_engine_was_stopped_with_is_told_by_another_what_became_of_it(here, a):
    await a.predict("s", x(0)).answer()
    reply, id_ = a.store.hold("commit reply"), new_id()
    call = a.predict("s", x(1), id_=id_)
    await reply.here()
    await a.stop()
    assert type(await refused(call)) is Draining
    told = await (await here.replica()).predict("s", x(1), id_=id_).answer()
    same(told.y, x(0), x(1))
    assert told.duplicate


async def test_more_operations_at_once_than_the_queue_holds_are_refused(here):
    a = await here.replica(queue=3)
    with pytest.raises(InvalidArgument):
        a.many(["s0", "s1", "s2", "s3"], np.zeros((4, 1, 2), np.float32))
    for call in a.many(["s0", "s1", "s2"], np.zeros((3, 1, 2), np.float32)):
        assert (await call.answer()).created
