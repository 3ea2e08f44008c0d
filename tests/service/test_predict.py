"""Predict: one session's chunks, and what can be asked with them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from recurra.v1 import session_pb2
from recurra.wire.errors import Behind, InvalidArgument, SessionNotFound
from tests.service.caller import Caller, Reply, new_id
from tests.service.processes import eventually
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]


def joined(replies: list[Reply]) -> NDArray[Any]:
    return np.concatenate([reply.y for reply in replies])


@pytest.mark.parametrize("name", ["lstm", "embed"])
def test_the_oracle_gives_what_onnx_runtime_gives_for_the_whole_input(name: str):
    model = MODELS[name]
    x = model.draw(0, 17)
    run = onnxruntime.InferenceSession(model.built.SerializeToString(), providers=["CPUExecutionProvider"])
    [whole] = run.run(None, {run.get_inputs()[0].name: x[None]})
    np.testing.assert_allclose(model.whole(x), whole[0], **CLOSE)


@pytest.mark.parametrize("name", MODELS)
def test_chunks_of_any_size_give_what_the_whole_input_gives(caller: Caller, session: str, name: str):
    model = MODELS[name]
    x = model.draw(0, 17)
    replies = [caller.predict(name, session, piece) for piece in np.split(x, [1, 2, 7, 12])]
    np.testing.assert_allclose(joined(replies), model.whole(x), **CLOSE)
    assert [reply.position for reply in replies] == [1, 2, 7, 12, 17]
    assert [reply.session.created for reply in replies] == [True, False, False, False, False]
    assert {reply.session.incarnation for reply in replies} == {replies[0].id}


def test_an_input_may_be_named_or_not(caller: Caller, session: str):
    x = LSTM.draw(1, 4)
    replies = [caller.predict("lstm", session, x[:2]), caller.predict("lstm", session, {"x": x[2:]})]
    np.testing.assert_allclose(joined(replies), LSTM.whole(x), **CLOSE)


def test_two_sessions_between_each_other_keep_apart(caller: Caller, session: str):
    xs = [LSTM.draw(seed, 12) for seed in (2, 3)]
    replies: list[list[Reply]] = [[], []]
    for t in range(0, 12, 3):
        for which in (0, 1):
            replies[which].append(caller.predict("lstm", f"{session} {which}", xs[which][t : t + 3]))
    for which in (0, 1):
        np.testing.assert_allclose(joined(replies[which]), LSTM.whole(xs[which]), **CLOSE)


def test_sessions_of_one_name_and_two_models_keep_apart(caller: Caller, session: str):
    for name in ("gru", "cell", "gru", "cell"):
        caller.predict(name, session, MODELS[name].draw(1, 2))
    for name in ("gru", "cell"):
        x = MODELS[name].draw(1, 2)
        reply = caller.predict(name, session, x)
        np.testing.assert_allclose(reply.y, MODELS[name].whole(x, x, x)[4:], **CLOSE)


def test_many_sessions_at_once_each_get_their_own_answer(caller: Caller, session: str):
    xs = [LSTM.draw(seed, 6) for seed in range(100)]
    for t in (0, 3):
        sent = [caller.send("lstm", f"{session} {row}", x[t : t + 3]) for row, x in enumerate(xs)]
        for x, pending in zip(xs, sent, strict=True):
            np.testing.assert_allclose(pending.reply().y, LSTM.whole(x)[t : t + 3], **CLOSE)


def test_operations_of_one_session_in_flight_together_apply_in_the_order_of_their_names(caller: Caller, session: str):
    """Calls overtake each other on their way: one that comes too early is refused, and sent again."""
    ids, x = [new_id() for _ in range(20)], LSTM.draw(4, 20)
    ys: dict[int, NDArray[Any]] = {}
    while len(ys) < 20:
        left = [at for at in range(20) if at not in ys]
        sent = [
            caller.send("lstm", session, x[at : at + 1], id=ids[at], after=ids[at - 1] if at else b"") for at in left
        ]
        outcomes = dict(zip(left, [pending.outcome() for pending in sent], strict=True))
        ys |= {at: outcome.y for at, outcome in outcomes.items() if isinstance(outcome, Reply)}
        assert left[0] in ys
        assert all(isinstance(outcome, Reply | Behind | SessionNotFound) for outcome in outcomes.values())
    np.testing.assert_allclose(np.concatenate([ys[at] for at in range(20)]), LSTM.whole(x), **CLOSE)
    assert caller.get("lstm", session).position == 20


def test_returned_states_are_those_after_the_last_timestep(caller: Caller, session: str):
    x = LSTM.draw(5, 7)
    assert caller.predict("lstm", session, x[:3]).states == {}
    states = caller.predict("lstm", session, x[3:], return_states=True).states
    assert list(states) == ["lstm_1/h", "lstm_1/c"]
    for values, want in zip(states.values(), LSTM.after(x), strict=True):
        np.testing.assert_allclose(values, want, **CLOSE)


@pytest.mark.parametrize("name", MODELS)
def test_without_sequences_only_the_last_timestep_is_answered(caller: Caller, session: str, name: str):
    model = MODELS[name]
    x = model.draw(6, 5)
    y = caller.predict(name, session, x, return_sequences=False).y
    np.testing.assert_allclose(y, model.whole(x)[-1], **CLOSE)


def test_a_given_initial_state_replaces_the_sessions(caller: Caller, session: str):
    model, x = MODELS["gru"], MODELS["gru"].draw(7, 4)
    caller.predict("gru", session, x)
    start = np.full((1, 4), 0.3, np.float32)
    reply = caller.predict("gru", session, x, initial={"h0": start})
    np.testing.assert_allclose(reply.y, model.whole(x, state=(start,)), **CLOSE)
    assert reply.position == 4
    later = caller.predict("gru", session, x)
    np.testing.assert_allclose(later.y, model.whole(x, x, state=(start,))[4:], **CLOSE)


def test_of_several_states_one_may_be_given_alone(caller: Caller, session: str):
    x = LSTM.draw(8, 4)
    caller.predict("lstm", session, x)
    h, _ = LSTM.after(x)
    c = np.full((1, 6), -0.2, np.float32)
    reply = caller.predict("lstm", session, x, initial={"lstm_1/c": c})
    np.testing.assert_allclose(reply.y, LSTM.whole(x, state=(h, c)), **CLOSE)


def test_masked_timesteps_change_nothing_and_repeat_the_last_output(caller: Caller, session: str):
    x, mask = LSTM.draw(9, 6), [0, 1, 1, 0, 1, 0]
    reply = caller.predict("lstm", session, x, mask=mask)
    seen = LSTM.whole(x[[1, 2, 4]])
    np.testing.assert_allclose(reply.y, np.stack([seen[0] * 0, seen[0], seen[1], seen[1], seen[2], seen[2]]), **CLOSE)
    assert reply.position == 3
    later = caller.predict("lstm", session, x)
    np.testing.assert_allclose(later.y, LSTM.whole(x[[1, 2, 4]], x)[3:], **CLOSE)


@pytest.mark.parametrize("mask", [[1], [1] * 7, [0] * 6, [2] * 6])
def test_a_mask_that_does_not_fit_is_refused(caller: Caller, session: str, mask: list[int]):
    with pytest.raises(InvalidArgument):
        caller.predict("lstm", session, LSTM.draw(9, 6), mask=mask)


def test_what_if_answers_without_changing_the_session(caller: Caller, session: str):
    x = LSTM.draw(10, 9)
    caller.predict("lstm", session, x[:3])
    before = caller.get("lstm", session)
    if_ = caller.predict("lstm", session, x[3:6], commit=False, return_states=True)
    np.testing.assert_allclose(if_.y, LSTM.whole(x[:6])[3:], **CLOSE)
    np.testing.assert_allclose(if_.states["lstm_1/c"], LSTM.after(x[:6])[1], **CLOSE)
    assert if_.position == 6
    assert caller.get("lstm", session) == before
    after = caller.predict("lstm", session, x[6:])
    np.testing.assert_allclose(after.y, LSTM.whole(x[:3], x[6:])[3:], **CLOSE)


def test_what_if_makes_no_session(caller: Caller, session: str):
    x = LSTM.draw(11, 3)
    np.testing.assert_allclose(caller.predict("lstm", session, x, commit=False).y, LSTM.whole(x), **CLOSE)
    with pytest.raises(SessionNotFound):
        caller.get("lstm", session)


def test_what_if_between_operations_in_flight_sees_those_before_it(caller: Caller, session: str):
    x = LSTM.draw(12, 10)
    with caller.stream("lstm", [session]) as stream:
        for t in range(10):
            stream.send([0], x[None, t : t + 1], tag=2 * t)
            stream.send([0], x[None, :2], tag=2 * t + 1, commit=False)
        replies = sorted(stream.end(), key=lambda reply: reply.tag)
    assert [reply.errors for reply in replies] == [{}] * 20
    np.testing.assert_allclose(np.concatenate([reply.y[0] for reply in replies[::2]]), LSTM.whole(x), **CLOSE)
    for t, reply in enumerate(replies[1::2], 1):
        np.testing.assert_allclose(reply.y[0], LSTM.whole(x[:t], x[:2])[t:], **CLOSE)
        assert reply.positions == [t + 2]


def test_without_a_session_every_chunk_starts_fresh(caller: Caller):
    x = LSTM.draw(13, 5)
    for _ in range(2):
        reply = caller.predict("lstm", "", x, return_states=True)
        np.testing.assert_allclose(reply.y, LSTM.whole(x), **CLOSE)
        np.testing.assert_allclose(reply.states["lstm_1/h"], LSTM.after(x)[0], **CLOSE)
        assert not reply.raw.HasField("session")


def test_without_a_session_a_chunk_may_start_from_a_given_state(caller: Caller):
    model, x = MODELS["cell"], MODELS["cell"].draw(14, 3)
    start = np.linspace(-1, 1, 4, dtype=np.float32)
    reply = caller.predict("cell", "", x, initial={"h_in": start})
    np.testing.assert_allclose(reply.y, model.whole(x, state=(start,)), **CLOSE)


def test_many_chunks_without_a_session_share_no_state(caller: Caller):
    xs = [LSTM.draw(seed, 4) for seed in range(50)]
    for x, pending in zip(xs, [caller.send("lstm", "", x) for x in xs], strict=True):
        np.testing.assert_allclose(pending.reply().y, LSTM.whole(x), **CLOSE)


def test_a_session_lives_as_long_as_its_ttl_says(caller: Caller, session: str):
    x = LSTM.draw(15, 2)
    first = caller.predict("lstm", session, x, ttl=0.2).session
    lifetime = first.expire_time.ToMilliseconds() - first.update_time.ToMilliseconds()
    assert lifetime == 200

    def gone() -> bool:
        try:
            caller.get("lstm", session)
        except SessionNotFound:
            return True
        return False

    eventually(gone)
    again = caller.predict("lstm", session, x)
    assert again.session.created
    np.testing.assert_allclose(again.y, LSTM.whole(x), **CLOSE)


def test_the_last_operations_ttl_counts(caller: Caller, session: str):
    x = LSTM.draw(15, 2)
    caller.predict("lstm", session, x, ttl=1000.0)
    reply = caller.predict("lstm", session, x)
    lifetime = reply.session.expire_time.ToSeconds() - reply.session.update_time.ToSeconds()
    assert lifetime == caller.model("lstm").session_ttl.seconds


def test_a_session_may_have_to_exist(caller: Caller, session: str):
    with pytest.raises(SessionNotFound):
        caller.predict("lstm", session, LSTM.draw(1, 1), create=session_pb2.CREATE_NEVER)
    with pytest.raises(SessionNotFound):
        caller.get("lstm", session)


def test_clients_in_parallel_on_sessions_of_their_own_get_the_oracles_answers(caller: Caller, session: str):
    def client(number: int) -> None:
        x = MODELS["gru"].draw(number, 10)
        replies = [caller.predict("gru", f"{session} {number}", x[t : t + 2]) for t in range(0, 10, 2)]
        np.testing.assert_allclose(joined(replies), MODELS["gru"].whole(x), **CLOSE)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(client, range(16)))
