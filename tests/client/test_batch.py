"""A batch's handle, against a real server."""

from __future__ import annotations

import numpy as np
import pytest

from recurra.client import AsyncClient, BatchError, Client, InvalidArgument, RunFailed, SessionNotFound
from tests.client.faulty import Faulty
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
K = 6


@pytest.fixture
def ids(session: str) -> list[str]:
    return [f"{session} {row}" for row in range(K)]


def draw(timesteps: int, name: str = "lstm") -> np.ndarray:
    return np.stack([MODELS[name].draw(row, timesteps) for row in range(K)])


def whole(xs: np.ndarray, name: str = "lstm") -> np.ndarray:
    return np.stack([MODELS[name].whole(x) for x in xs])


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_sessions(client: Client, ids: list[str], name: str) -> None:
    xs = draw(7, name)
    batch = client.batch(name, ids)
    outputs = [batch.predict(xs[:, :3]), batch.predict(xs[:, 3])[:, None], batch.predict(xs[:, 4:])]
    np.testing.assert_allclose(np.concatenate(outputs, 1), whole(xs, name), **CLOSE)
    assert batch.position.tolist() == batch.durable_position.tolist() == [7] * K
    assert batch.incarnation.shape == (K, 16)
    assert client.session(name, ids[2]).info().position == 7


def test_sessions_that_are_there_are_continued_beside_new_ones(client: Client, ids: list[str]) -> None:
    xs = draw(6)
    for row in (1, 4):
        client.session("lstm", ids[row]).predict(xs[row, :2])
    batch = client.batch("lstm", ids)
    y = batch.predict(xs[:, 2:])
    for row in range(K):
        expected = LSTM.whole(xs[row])[2:] if row in (1, 4) else LSTM.whole(xs[row, 2:])
        np.testing.assert_allclose(y[row], expected, **CLOSE)
    assert batch.created.tolist() == [row not in (1, 4) for row in range(K)]
    batch.predict(xs)


async def test_sessions_that_are_there_keep_their_inputs_in_whatever_order_their_errors_come(
    aclient: AsyncClient, faulty: Faulty, ids: list[str]
) -> None:
    xs = draw(6)
    await aclient.batch("lstm", ids).predict(xs[:, :2])
    faulty.errors_reversed = True
    y = await aclient.batch("lstm", ids).predict(xs[:, 2:])
    np.testing.assert_allclose(y, whole(xs)[:, 2:], **CLOSE)


async def test_sessions_that_are_there_cost_one_frame_more(
    aclient: AsyncClient, faulty: Faulty, ids: list[str]
) -> None:
    xs = draw(2)
    await aclient.batch("lstm", ids).predict(xs)
    faulty.asked.clear()
    await aclient.batch("lstm", ids).predict(xs)
    assert faulty.asked == ["StreamPredict"]


def test_ragged_rows(client: Client, ids: list[str]) -> None:
    xs, lengths = draw(5), np.array([5, 3, 1, 0, 4, 2])
    batch = client.batch("lstm", ids)
    y = batch.predict(xs, lengths=lengths)
    for row, length in enumerate(lengths):
        expected = np.zeros((5, 2))
        if length:
            expected[:length] = LSTM.whole(xs[row, :length])
            expected[length:] = expected[length - 1]
        np.testing.assert_allclose(y[row], expected, **CLOSE)
    assert batch.position.tolist() == lengths.tolist()
    last = batch.predict(xs, lengths=np.maximum(lengths, 1), return_sequences=False)
    np.testing.assert_allclose(last[0], LSTM.whole(xs[0], xs[0])[-1], **CLOSE)
    assert last.shape == (K, 2)


def test_any_mask(client: Client, ids: list[str]) -> None:
    xs, mask = draw(8), np.random.default_rng(3).random((K, 8)) < 0.5
    mask[0] = False
    batch = client.batch("lstm", ids)
    y = batch.predict(xs, mask=mask)
    assert not y[0].any()
    for row in range(1, K):
        np.testing.assert_allclose(y[row], client.predict("lstm", xs[row], mask=mask[row]), **CLOSE)
    assert batch.position.tolist() == mask.sum(1).tolist()


def test_what_can_be_asked_with_a_prediction(client: Client, ids: list[str]) -> None:
    xs = draw(4)
    batch = client.batch("lstm", ids)
    np.testing.assert_allclose(batch.predict(xs, commit=False), whole(xs), **CLOSE)
    y, states = batch.predict(xs, return_states=True, return_sequences=False)
    np.testing.assert_allclose(y, whole(xs)[:, -1], **CLOSE)
    assert batch.position.tolist() == [4] * K
    held = batch.state()
    assert held.keys() == states.keys()
    for name, state in states.items():
        assert state.shape == (K, 1, 6)
        np.testing.assert_array_equal(held[name], state)
    with pytest.raises(InvalidArgument, match="return_states"):
        batch.predict(xs, return_states=True, lengths=[0, 1, 1, 1, 1, 1])
    with pytest.raises(InvalidArgument, match="no timestep"):
        batch.predict(xs, lengths=[0] * K)


def test_reset_end_and_a_new_life(client: Client, ids: list[str]) -> None:
    xs = draw(4)
    batch = client.batch("lstm", ids)
    batch.predict(xs)
    batch.reset("lstm_1")
    assert batch.position.tolist() == [0] * K
    np.testing.assert_allclose(batch.predict(xs), whole(xs), **CLOSE)
    batch.end()
    np.testing.assert_allclose(batch.predict(xs), whole(xs), **CLOSE)
    assert batch.created.all()


def test_rows_fail_alone(client: Client, ids: list[str]) -> None:
    xs = draw(4)
    batch = client.batch("lstm", ids)
    batch.predict(xs[:, :2])
    client.session("lstm", ids[3]).reset()
    with pytest.raises(BatchError) as caught:
        batch.predict(xs[:, 2:])
    assert set(caught.value.errors) == {ids[3]}
    assert caught.value.errors[ids[3]].reason == "RESET"
    assert not caught.value.outputs[3].any()
    good = [row for row in range(K) if row != 3]
    np.testing.assert_allclose(caught.value.outputs[good], whole(xs)[good, 2:], **CLOSE)
    batch.follow()
    y = batch.predict(xs[:, 2:], lengths=[2 * (row == 3) for row in range(K)])
    np.testing.assert_allclose(y[3], LSTM.whole(xs[3, 2:]), **CLOSE)
    batch.predict(xs)


def test_a_row_that_the_model_fails_on_stays_where_it_was(client: Client, ids: list[str]) -> None:
    xs = draw(3, "picky")
    batch = client.batch("picky", ids)
    batch.predict(xs)
    bad = xs.copy()
    bad[1, 0, 0] = 2000
    with pytest.raises(BatchError) as caught:
        batch.predict(bad)
    assert isinstance(caught.value.errors[ids[1]], RunFailed)
    only = [3 * (row == 1) for row in range(K)]
    np.testing.assert_allclose(batch.predict(xs, lengths=only)[1], MODELS["picky"].whole(xs[1], xs[1])[3:], **CLOSE)
    assert batch.position.tolist() == [6] * K


def test_what_fails_as_a_whole_is_one_error(client: Client, ids: list[str]) -> None:
    batch = client.batch("lstm", ids)
    with pytest.raises(InvalidArgument, match="NaN"):
        batch.predict(np.full((K, 3), np.nan))
    with pytest.raises(InvalidArgument, match="6 rows"):
        batch.predict(np.zeros((K + 1, 3)))
    for wrong in ([], ["a", "a"]):
        with pytest.raises(InvalidArgument):
            client.batch("lstm", wrong)
    batch.predict(np.zeros((K, 3)))
    assert batch.position.tolist() == [1] * K


def test_rows_that_must_exist_or_be_new(client: Client, ids: list[str]) -> None:
    xs = draw(2)
    client.session("lstm", ids[0]).predict(xs[0])
    must = client.batch("lstm", ids, create="must_exist")
    for operation in (lambda: must.predict(xs), must.reset):
        with pytest.raises(BatchError) as caught:
            operation()
        assert {type(error) for error in caught.value.errors.values()} == {SessionNotFound}
        assert set(caught.value.errors) == set(ids[1:])
    with pytest.raises(BatchError) as caught:
        client.batch("lstm", ids, create="must_be_new").predict(xs)
    assert {session: error.reason for session, error in caught.value.errors.items()} == {ids[0]: "SESSION_EXISTS"}
    must.predict(xs)
    assert must.position.tolist() == [2] + [4] * (K - 1)


def test_a_batch_of_more_rows_than_one_reset_takes(client: Client, session: str) -> None:
    batch = client.batch("gru", [f"{session} {row}" for row in range(5000)])
    batch.predict(np.ones((5000, 3)))
    batch.reset(timeout=60)
    assert not batch.position.any()
