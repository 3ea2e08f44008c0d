"""The runner on device memory: places change hands, and none is lost or had by two."""

import gc
import threading
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra import models
from recurra.models.pool import FIRST, FRESH
from recurra.server.engine.device import Device
from recurra.server.engine.pool import PoolRunner
from recurra.server.engine.seams import Given
from tests.server.engine.world import Replica, World, new_id, turned, until
from tests.service import zoo

SLOTS = 12


@pytest.fixture(scope="module")
def small(repository):
    """Runs at most four sessions at once."""
    model = models.load(repository / "picky", provider="cpu")
    return models.repository.replace(model, max_batch=4)


@pytest.fixture(scope="module")
def device():
    with closing(Device()) as made:
        yield made


def check(runner: PoolRunner) -> None:
    """Each place is nobody's or one slot's, and no batch has any."""
    gc.collect()
    owned = runner._places[runner._places != FRESH]
    assert len(set(owned.tolist())) == len(owned)
    free = np.concatenate((runner._free[: runner._left], *runner._returned)).tolist()
    assert sorted([*free, *owned.tolist()]) == list(range(FIRST, runner.places))
    assert runner.free == len(free)


async def let_go(device: Device) -> None:
    """Return once nobody holds what was run any more."""
    await device.run("nothing", int)
    gc.collect()


def bytes_of(number: float) -> np.ndarray:
    return np.full((1, 2), number, np.float32).view(np.uint8)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["load", "reset", "set", "forget", "hold", "keep", "drop"]),
            st.lists(st.integers(1, SLOTS - 1), min_size=1, max_size=4, unique=True),
        ),
        max_size=24,
    )
)
def test_slots_hold_what_was_kept_there_last_and_no_place_is_lost(small, device, actions):
    runner = PoolRunner(small, device, slots=SLOTS)
    oracle, held = dict.fromkeys(range(SLOTS), 0.0), None
    for number, (action, chosen) in enumerate(actions, 1):
        slots = np.array(chosen)
        match action:
            case "load":
                runner.load(slots, np.repeat(bytes_of(number), len(slots), 0))
                oracle |= dict.fromkeys(chosen, float(number))
            case "reset" | "set":
                rows = slice(0, len(slots)) if action == "reset" else slice(0, 1)
                values = np.full((1, 2), number, np.float32)
                runner.scatter(slots, runner.gather(slots, [Given(0, rows, values)]))
                oracle |= dict.fromkeys(chosen if action == "reset" else chosen[:1], float(number))
            case "forget":
                runner.scatter(slots, runner.gather(np.zeros(len(slots), np.intp)))
                oracle |= dict.fromkeys(chosen, 0.0)
            case "hold":  # a batch that is computed, and not kept yet
                held = (
                    slots,
                    number,
                    runner.gather(slots, [Given(0, slice(0, len(slots)), np.full((1, 2), number, "f4"))]),
                )
            case "keep" if held:
                kept = np.arange(len(held[0])) % 2 == 0
                runner.scatter(held[0][kept], held[2].only(kept))
                oracle |= dict.fromkeys(held[0][kept].tolist(), float(held[1]))
                held = None
            case "drop":
                held = None
        found = runner.gather(np.arange(SLOTS)).to_bytes().view(np.float32)
        assert found.tolist() == [[oracle[slot]] * 2 for slot in range(SLOTS)]
    held = None
    check(runner)


async def test_what_is_not_kept_leaves_its_places(small, device):
    runner = PoolRunner(small, device, slots=SLOTS)
    free, slots = runner.free, np.array([1, 2, 3])
    for _ in range(50):  # far more than there are places
        step = await runner.run([np.ones((3, 1, 2), np.float32)], runner.gather(slots), fetch=False)
        assert step.states.finite().all()
    del step
    await let_go(device)
    assert runner.free == free
    assert not runner.gather(slots).to_bytes().any()
    check(runner)


async def test_a_run_that_fails_leaves_its_places_and_all_states(small, device):
    runner = PoolRunner(small, device, slots=SLOTS)
    slots = np.array([1, 2, 3])
    step = await runner.run([np.ones((3, 1, 2), np.float32)], runner.gather(slots))
    runner.scatter(slots, step.states)
    await let_go(device)
    before, free = runner.gather(slots).to_bytes().tobytes(), runner.free
    bad = np.zeros((3, 1, 2), np.float32)
    bad[1, 0, 0] = 2000
    for _ in range(50):
        with pytest.raises(Exception, match="Gather"):
            await runner.run([bad], runner.gather(slots))
    del step
    await let_go(device)
    assert (runner.gather(slots).to_bytes().tobytes(), runner.free) == (before, free)
    check(runner)


async def test_a_state_that_overflows_is_told_without_being_read(small, device):
    runner = PoolRunner(small, device, slots=SLOTS)
    slots = np.array([4, 5])
    runner.load(slots, np.array([[1, 1], [3e38, 3e38]], np.float32).view(np.uint8))
    x = np.array([[[0, 0]], [[0, 3e38]]], np.float32)
    step = await runner.run([x], runner.gather(slots), fetch=False)
    assert step.states.finite().tolist() == [True, False]


async def test_recorded_timesteps_go_on_from_the_same_states(small, device):
    runner = PoolRunner(small, device, slots=SLOTS)
    slots, x = np.array([1, 2, 3]), np.ones((3, 1, 2), np.float32)
    found = []
    for recorded in (False, True):
        if recorded:
            assert await runner.record() == ""
        step = await runner.run([x], runner.gather(slots))
        runner.scatter(slots, step.states)
        found.append(step.outputs[0][:, 0].tolist())
    assert found == [[[1, 1]] * 3, [[1.5, 1.5]] * 3]


async def test_on_a_checkpointed_stream_no_state_crosses_between_checkpoints(here: World):
    a = await here.replica(states="device")
    last = await owned(a, "s", "t")
    crossed = a.runner.real._pool.crossed
    for at in range(20):
        ids = [new_id(), new_id()]
        calls = a.many(["s", "t"], np.full((2, 3, 2), at, np.float32), ids=ids, afters=last, checkpointed=True)
        for call in calls:
            await call.answer()
        last = ids
    assert a.runner.real._pool.crossed == crossed
    assert (await a.engine.look("s")).header["position"][0] == 62  # which has it written
    size = a.engine.model.signature.state_bytes
    assert a.runner.real._pool.crossed == (crossed.to_host + size, crossed.to_device)


async def owned(a: Replica, *sessions: str) -> list[bytes]:
    """Two timesteps of each, committed: then the replica owns them. Their last ids."""
    last = [bytes(16)] * len(sessions)
    for _ in range(2):
        ids = [new_id() for _ in sessions]
        xs = np.ones((len(sessions), 1, 2), np.float32)
        for call in a.many(sessions, xs, ids=ids, afters=last, checkpointed=True):
            await call.answer()
        last = ids
    return last


@pytest.mark.parametrize("current", [True, False])
async def test_states_that_are_fetched_are_those_of_then(small, device, monkeypatch, current):
    """Although something else is current at their slots, and other places are others', before they are read."""
    runner = PoolRunner(small, device, slots=SLOTS)
    slots, x = np.array([1, 2, 3]), np.ones((3, 1, 2), np.float32)
    step = await runner.run([x], runner.gather(slots), fetch=False)
    runner.scatter(slots, step.states)
    states = runner.gather(slots) if current else step.states
    gate, read = threading.Event(), runner._pool.read
    monkeypatch.setattr(runner._pool, "read", lambda places: gate.wait() and read(places))
    coming = states.fetch()
    del step
    for _ in range(runner.places // 3 - 3):  # as many as there are, without those that wait for the copy
        later = await runner.run([x], runner.gather(slots), fetch=False)
        runner.scatter(slots, later.states)
        if runner.free < 3:
            break
    gate.set()
    await coming
    assert states.to_bytes().view(np.float32).tolist() == [[1, 1]] * 3


async def test_places_that_wait_for_a_copy_are_waited_for(small, device, monkeypatch):
    runner = PoolRunner(small, device, slots=SLOTS)
    slots, x = np.array([1, 2, 3, 4]), np.ones((4, 1, 2), np.float32)
    gate, read, wait = threading.Event(), runner._pool.read, device.until_copied
    monkeypatch.setattr(runner._pool, "read", lambda places: gate.wait() and read(places))
    monkeypatch.setattr(device, "until_copied", lambda: (gate.set(), wait()))
    coming = runner.gather(slots).fetch()
    for _ in range(runner.places):  # each takes four, and the old ones come back behind the copy
        step = await runner.run([x], runner.gather(slots), fetch=False)
        runner.scatter(slots, step.states)
        del step
    assert gate.is_set()
    await coming
    check(runner)


async def test_a_session_that_is_let_go_while_it_is_run_is_committed_with_its_own_state(here: World):
    a = await here.replica()
    (last,) = await owned(a, "s")
    slot = a.engine.slot("s")
    gate = a.run.hold("run")
    call = a.predict("s", np.full((1, 2), 8, np.float32), after=last, checkpointed=True)
    await gate.here()
    a.engine.leave(np.array([slot]))
    await until(lambda: turned(lambda: not a.engine.slots.owned[slot]))
    gate.open()
    answer = await call.answer()
    assert (answer.position, answer.durable) == (3, 3)
    found = await a.engine.reader.look("s")
    assert np.frombuffer(found.state, np.float32).tolist() == [8.75, 8.75]  # (1 / 2 + 1) / 2 + 8
    np.testing.assert_array_equal(answer.y, [[8.75, 8.75]])


async def test_more_sessions_than_slots_take_turns_on_the_device_and_lose_nothing(here: World):
    a = await here.replica(slots=5, max_batch=3)
    picky, rng = zoo.MODELS["picky"], np.random.default_rng(1)
    chunks: dict[str, list[np.ndarray]] = {f"s{at}": [] for at in range(17)}
    for _ in range(6):
        for name in rng.permutation([*chunks]).tolist():
            x = rng.standard_normal((2, 2)).astype(np.float32)
            chunks[name].append(x)
            answer = await a.predict(name, x).answer()
            np.testing.assert_allclose(answer.y, picky.whole(*chunks[name])[-2:], **zoo.CLOSE)
    if here.states == "device":
        check(a.runner.real)


async def test_sessions_move_between_replicas_of_both_kinds(here: World):
    a, b = await here.replica(states="host"), await here.replica(states="device")
    picky, parts, last = zoo.MODELS["picky"], [], bytes(16)
    for turn in range(12):
        parts.append(picky.draw(turn, 1 + turn % 3))
        call = (a, b)[turn % 2].predict("s", parts[-1], after=last)
        answer = await call.answer()
        last = answer.last_id
        np.testing.assert_allclose(answer.y, picky.whole(*parts)[-len(parts[-1]) :], **zoo.CLOSE)


async def test_a_stopped_replicas_places_are_all_free(here: World):
    a = await here.replica(states="device")
    gate = a.run.hold("run")
    a.predict("s", np.ones((40, 2), np.float32))  # long: in pieces
    await gate.here()
    await a.stop()
    gate.open()
    await until(lambda: settled(a))
    check(a.runner.real)


async def settled(a: Replica) -> bool:
    return a.task.done()


async def test_a_batch_that_is_fetched_is_not_copied_again(small, device):
    runner = PoolRunner(small, device, slots=SLOTS)
    step = await runner.run([np.arange(6, dtype=np.float32).reshape(3, 1, 2)], runner.gather(np.array([1, 2, 3])))
    coming = step.states.fetch()
    whole = await coming
    some = step.states.only(np.array([True, False, True]))
    assert step.states.to_bytes() is whole
    assert some.to_bytes().tobytes() == whole[[0, 2]].tobytes()
