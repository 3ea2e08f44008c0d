"""Chunks of several lengths in one batch: each session gets what it would get alone."""

import numpy as np
import pytest

from recurra import models
from recurra.wire.errors import Diverged
from tests.server.engine.world import new_id, world
from tests.service import zoo

LSTM = zoo.MODELS["lstm"]


class Spoiled:
    """The states of a run of which some, (N,) bool, are told to be no numbers."""

    def __init__(self, states, bad):
        self._states, self._bad = states, bad

    def only(self, rows):
        states, bad = self._states.only(rows), self._bad[rows]
        return Spoiled(states, bad) if bad.any() else states

    def finite(self):
        return self._states.finite() & ~self._bad


@pytest.fixture(params=["host", "device"])
async def a(store, repository, request):
    async with world(store, models.load(repository / "lstm", provider="cpu"), request.param) as made:
        yield await made.replica()


async def held(a, lengths: dict[str, int], **more) -> dict:
    """Chunks of these lengths, that wait for one run behind another; the calls by session."""
    for name in lengths:
        await a.predict(name, LSTM.draw(0, 1)).answer()
    gate = a.run.hold("run")
    first = a.predict("first", LSTM.draw(0, 1))
    await gate.here()
    calls = {name: a.predict(name, LSTM.draw(at, size), **more) for at, (name, size) in enumerate(lengths.items())}
    runs = len(a.runner.runs)
    gate.open()
    await first.answer()
    for call in calls.values():
        await call.answer()
    calls["runs"] = a.runner.runs[runs:]
    return calls


def expected(at: int, size: int) -> np.ndarray:
    return LSTM.whole(LSTM.draw(0, 1), LSTM.draw(at, size))[1:]


async def test_chunks_up_to_the_next_power_of_two_share_a_run_and_each_gets_its_own(a):
    lengths = {"five": 5, "eight": 8, "seven": 7, "six": 6, "five again": 5}
    calls = await held(a, lengths)
    assert calls["runs"] == [(5, 8)]
    for at, (name, size) in enumerate(lengths.items()):
        answer = await calls[name].answer()
        np.testing.assert_allclose(answer.y, expected(at, size), **zoo.CLOSE)
        assert answer.position == 1 + size
        assert (await a.stands(name))[1] == 1 + size
        after = await a.predict(name, LSTM.draw(9, 2)).answer()  # the padding left nothing in the state
        whole = LSTM.whole(LSTM.draw(0, 1), LSTM.draw(at, size), LSTM.draw(9, 2))
        np.testing.assert_allclose(after.y, whole[-2:], **zoo.CLOSE)


async def test_one_timestep_is_never_padded_nor_are_chunks_twice_as_long(a):
    lengths = {"one": 1, "two": 2, "three": 3, "four": 4, "nine": 9, "one more": 1}
    calls = await held(a, lengths)
    assert sorted(calls["runs"]) == [(1, 2), (1, 9), (2, 1), (2, 4)]


async def test_the_last_timestep_of_each_row_is_its_own(a):
    lengths = {"five": 5, "eight": 8}
    calls = await held(a, lengths, return_sequences=False, return_states=True)
    assert calls["runs"] == [(2, 8)]
    for at, (name, size) in enumerate(lengths.items()):
        answer = await calls[name].answer()
        np.testing.assert_allclose(answer.y, expected(at, size)[-1], **zoo.CLOSE)
        for state, right in zip(answer.states, LSTM.after(LSTM.draw(0, 1), LSTM.draw(at, size)), strict=True):
            np.testing.assert_allclose(state.reshape(-1), right.reshape(-1), **zoo.CLOSE)


async def test_a_retry_of_a_padded_chunk_is_a_duplicate_and_another_input_is_told(a):
    calls = await held(a, {"five": 5, "eight": 8})
    first = await calls["five"].answer()
    again = await a.predict("five", LSTM.draw(0, 5), id_=calls["five"].id).answer()
    assert again.duplicate
    np.testing.assert_array_equal(again.y, first.y)
    with pytest.raises(Diverged):
        await a.predict("five", np.pad(LSTM.draw(0, 5), ((0, 3), (0, 0))), id_=calls["five"].id).answer()


async def test_a_what_if_among_them_changes_nothing(a):
    calls = await held(a, {"five": 5, "eight": 8}, commit=False)
    assert calls["runs"] == [(2, 8)]
    np.testing.assert_allclose((await calls["eight"].answer()).y, expected(1, 8), **zoo.CLOSE)
    assert (await a.stands("eight"))[1] == 1


async def test_of_a_padded_batch_the_bad_row_fails_alone(a):
    a.runner.spoil = lambda inputs, step: (
        step._replace(states=Spoiled(step.states, np.arange(3) == 1)) if inputs[0].shape[:2] == (3, 8) else step
    )
    for name in ("a", "b", "c"):
        await a.predict(name, LSTM.draw(0, 1), id_=new_id()).answer()
    gate = a.run.hold("run")
    first = a.predict("first", LSTM.draw(0, 1))
    await gate.here()
    calls = [a.predict(name, LSTM.draw(at, 6 + at)) for at, name in enumerate("abc")]
    gate.open()
    await first.answer()
    for at in (0, 2):
        np.testing.assert_allclose((await calls[at].answer()).y, expected(at, 6 + at), **zoo.CLOSE)
    with pytest.raises(Exception, match="not finite"):
        await calls[1].answer()
    assert (await a.stands("b"))[1] == 1


async def test_what_was_sent_of_a_padded_batch_is_not_run_again_when_another_length_fails(a, monkeypatch):
    for name in ("five", "eight"):
        await a.predict(name, LSTM.draw(0, 1)).answer()
    kind = type(a.runner.gather(np.zeros(1, np.intp)))
    to_bytes, asked = kind.to_bytes, []

    def short_of_memory(states):
        asked.append(len(states))
        if len(asked) == 3:  # the first call's, then the five's, then the eight's
            raise MemoryError
        return to_bytes(states)

    gate = a.run.hold("run")
    first = a.predict("first", LSTM.draw(0, 1))
    await gate.here()
    calls = [a.predict("five", LSTM.draw(0, 5)), a.predict("eight", LSTM.draw(1, 8))]
    monkeypatch.setattr(kind, "to_bytes", short_of_memory)
    gate.open()
    await first.answer()
    for at, (call, size) in enumerate(zip(calls, (5, 8), strict=True)):
        answer = await call.answer()
        np.testing.assert_allclose(answer.y, expected(at, size), **zoo.CLOSE)
        assert answer.position == 1 + size
    assert (await a.stands("five"))[1] == 6
