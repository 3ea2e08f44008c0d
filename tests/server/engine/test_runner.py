"""The runner keeps each session's states as its own, whatever their dtypes, shapes and batch axes."""

import asyncio
from contextlib import closing, suppress
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recurra import models
from recurra.models import Signature, StateSpec
from recurra.server.engine.device import Device
from recurra.server.engine.runner import HostStates, SlabRunner
from tests.service import zoo

SLOTS = 6
DTYPES = [np.dtype(name) for name in ("<f4", "<f8", "<f2", "<i8", "<i4", "|i1", "|u1", "|b1")]


@st.composite
def specs(draw: st.DrawFn) -> tuple[StateSpec, ...]:
    made = []
    for at in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
        axis = draw(st.integers(0, len(shape)))
        fresh = draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, allow_nan=False)))
        made.append(StateSpec(f"s{at}", "layer", dtype, shape, axis, fresh))
    return tuple(made)


def of_rows(spec: StateSpec, rows: np.ndarray) -> np.ndarray:
    """(N, *shape) in the graph's layout."""
    return np.moveaxis(rows, 0, spec.batch_axis)


def rows_of(spec: StateSpec, state: np.ndarray) -> np.ndarray:
    return np.moveaxis(state, spec.batch_axis, 0)


def drawn(states: tuple[StateSpec, ...], count: int, seed: int) -> list[np.ndarray]:
    """Any bytes at all: states go through unchanged to the last bit, NaNs too. Booleans are 0 or 1."""
    rng, made = np.random.default_rng(seed), []
    for spec in states:
        raw = rng.integers(0, 2 if spec.dtype.kind == "b" else 256, (count, spec.nbytes), np.uint8)
        made.append(of_rows(spec, raw.view(spec.dtype).reshape(count, *spec.shape)))
    return made


def runner(states: tuple[StateSpec, ...]) -> SlabRunner:
    return SlabRunner(Signature((), (), states), program=None, device=None, slots=SLOTS)


def same(states: tuple[StateSpec, ...], found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for spec, one, other in zip(states, found, expected, strict=True):
        assert (one.dtype, one.shape) == (spec.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


@settings(deadline=None, max_examples=60)
@given(specs(), st.integers(1, 5), st.integers(0, 2**32))
def test_states_come_back_from_bytes_as_they_were(states, count, seed):
    made, given_ = runner(states), drawn(states, count, seed)
    rows = HostStates(states, given_).to_bytes()
    assert (rows.shape, rows.dtype) == ((count, sum(spec.nbytes for spec in states)), np.uint8)
    made.load(np.arange(1, count + 1), rows)
    same(states, made.gather(np.arange(1, count + 1)).arrays, given_)
    # A session's bytes are its own: they do not depend on who else is in the batch.
    alone = [state.take([count - 1], spec.batch_axis) for spec, state in zip(states, given_, strict=True)]
    assert HostStates(states, alone).to_bytes()[0].tobytes() == rows[count - 1].tobytes()


@settings(deadline=None, max_examples=60)
@given(
    specs(),
    st.lists(
        st.tuples(
            st.sampled_from(["put", "ask"]),
            st.lists(st.integers(1, SLOTS - 1), min_size=1, max_size=3, unique=True),
        ),
        max_size=12,
    ),
)
def test_slots_hold_what_was_put_there_last(states, actions):
    made = runner(states)
    oracle = {0: [spec.fresh.tobytes() for spec in states]}
    for seed, (action, slots) in enumerate([*actions, ("ask", [0]), ("ask", [0, 1]), ("ask", [*range(SLOTS)])]):
        values = drawn(states, len(slots), seed) if action == "put" else made.gather(np.array(slots)).arrays
        if action == "put":
            made.scatter(np.array(slots), HostStates(states, values))
        for row, slot in enumerate(slots):
            found = [rows_of(spec, state)[row].tobytes() for spec, state in zip(states, values, strict=True)]
            if action == "put":
                oracle[slot] = found
            assert found == oracle.get(slot, found), slot


@settings(deadline=None, max_examples=20)
@given(specs(), st.lists(st.integers(1, SLOTS - 1), min_size=1, max_size=SLOTS, unique=True))
def test_slots_cannot_be_changed_through_what_was_gathered(states, put):
    made = runner(states)
    for slots in (np.array(put), np.arange(SLOTS)):
        made.scatter(np.array(put), HostStates(states, drawn(states, len(put), 0)))
        before = made.gather(slots).to_bytes().tobytes()
        for state in made.gather(slots).arrays:
            with suppress(ValueError):  # it is the slots' own, and read-only
                state[...] = 1
        assert made.gather(slots).to_bytes().tobytes() == before


@pytest.mark.parametrize("name", ["lstm", "gru", "picky"])
async def test_sessions_run_together_give_what_each_gives_alone(repository, name):
    model, oracle = models.load(repository / name, provider="cpu"), zoo.MODELS[name]
    chunks = [np.stack([oracle.draw(10 * part + row, 3) for row in range(4)]) for part in range(3)]
    slots = np.array([5, 2, 9, 1])
    with closing(Device()) as device:
        made = SlabRunner(model.signature, model.program, device, slots=10)
        made.scatter(slots, made.gather(np.zeros(4, np.intp)))
        for part, chunk in enumerate(chunks):
            order = np.random.default_rng(part).permutation(4)
            step = await made.run([chunk[order]], made.gather(slots[order]))
            made.scatter(slots[order], step.states)
            for place, row in enumerate(order):
                whole = oracle.whole(*(before[row] for before in chunks[: part + 1]))
                np.testing.assert_allclose(step.outputs[0][place], whole[-3:], **zoo.CLOSE)
        for slot, row in zip(slots, range(4), strict=True):
            after = oracle.after(*(chunk[row] for chunk in chunks))
            for state, expected in zip(made.gather([slot]).tensors(), after, strict=True):
                np.testing.assert_allclose(state[0].ravel(), expected.ravel(), **zoo.CLOSE)


async def test_what_the_model_raises_comes_through_and_changes_nothing(repository):
    model = models.load(repository / "picky", provider="cpu")
    with closing(Device()) as device:
        made = SlabRunner(model.signature, model.program, device, slots=4)
        slots = np.arange(4)
        before = made.gather(slots).to_bytes().tobytes()
        bad = np.zeros((4, 1, 2), np.float32)
        bad[2, 0, 0] = 2000
        with pytest.raises(Exception, match="Gather"):
            await made.run([bad], made.gather(slots))
        assert made.gather(slots).to_bytes().tobytes() == before


async def test_runs_take_turns_on_the_devices_one_thread():
    inside, order = 0, []

    def run(inputs, states, lengths):
        nonlocal inside
        inside += 1
        assert inside == 1
        order.append(len(inputs[0]))
        inside -= 1
        return [], states

    with closing(Device()) as device:
        made = SlabRunner(Signature((), (), ()), SimpleNamespace(run=run), device, slots=1)
        await asyncio.gather(*(made.run([np.zeros((at, 1))], made.gather(np.zeros(1, np.intp))) for at in range(50)))
    assert order == list(range(50))
