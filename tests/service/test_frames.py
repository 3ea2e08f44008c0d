"""StreamPredict: frames of many sessions' chunks, as columns."""

from __future__ import annotations

import numpy as np
import pytest

from recurra.v1 import inference_pb2, session_pb2
from recurra.wire.errors import (
    Behind,
    Diverged,
    InvalidArgument,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    RunFailed,
    SessionExists,
    SessionNotFound,
)
from tests.conftest import StartServer
from tests.service.caller import Caller, FrameReply, Stream, new_id
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]


def names(session: str, count: int) -> list[str]:
    return [f"{session} {row}" for row in range(count)]


def rows(model: str, count: int, timesteps: int, seed: int = 0) -> np.ndarray:
    """Inputs of `count` sessions, (N, T, ...)."""
    return np.stack([MODELS[model].draw(seed * 1000 + row, timesteps) for row in range(count)])


def wholes(model: str, x: np.ndarray) -> np.ndarray:
    return np.stack([MODELS[model].whole(row) for row in x])


@pytest.mark.parametrize("model", MODELS)
def test_frames_give_what_the_whole_inputs_give(caller: Caller, session: str, model: str):
    x = rows(model, 9, 12)
    with caller.stream(model, names(session, 9)) as stream:
        replies = [stream.ask(range(9), piece) for piece in np.split(x, [1, 5], axis=1)]
    np.testing.assert_allclose(np.concatenate([reply.y for reply in replies], 1), wholes(model, x), **CLOSE)
    assert [reply.positions for reply in replies] == [[1] * 9, [5] * 9, [12] * 9]
    assert [reply.raw.created for reply in replies] == [b"\1" * 9, b"\0" * 9, b"\0" * 9]


def test_frames_larger_than_a_batch_of_the_model_are_answered_whole(caller: Caller, session: str):
    x = rows("cell", 700, 2)
    with caller.stream("cell", names(session, 700)) as stream:
        reply = stream.ask(range(700), x)
    np.testing.assert_allclose(reply.y, wholes("cell", x), **CLOSE)


def test_rows_may_differ_in_length(caller: Caller, session: str):
    x, lengths = rows("lstm", 5, 4), [1, 4, 2, 4, 3]
    with caller.stream("lstm", names(session, 5)) as stream:
        reply = stream.ask(range(5), x, lengths=lengths, return_states=True)
        last = stream.ask(range(5), x, lengths=lengths, return_sequences=False)
    assert reply.positions == lengths
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(reply.y[row, :length], LSTM.whole(x[row, :length]), **CLOSE)
        np.testing.assert_allclose(reply.states["lstm_1/c"][row], LSTM.after(x[row, :length])[1], **CLOSE)
        np.testing.assert_allclose(last.y[row], LSTM.whole(x[row, :length], x[row, :length])[-1], **CLOSE)
        assert not reply.y[row, length:].any()


def test_frames_in_flight_together_apply_in_order(caller: Caller, session: str):
    x = rows("lstm", 6, 40)
    with caller.stream("lstm", names(session, 6)) as stream:
        for t in range(40):
            stream.send(range(6), x[:, t : t + 1], tag=t)
        replies = sorted(stream.end(), key=lambda reply: reply.tag)
    assert [reply.errors for reply in replies] == [{}] * 40
    np.testing.assert_allclose(np.concatenate([reply.y for reply in replies], 1), wholes("lstm", x), **CLOSE)


def test_frames_in_flight_may_hold_other_sessions_in_other_orders(caller: Caller, session: str):
    rng = np.random.default_rng(0)
    x, at = rows("gru", 8, 64), np.zeros(8, int)
    frames = []
    with caller.stream("gru", names(session, 8)) as stream:
        for _ in range(40):
            handles = rng.permutation(8)[: rng.integers(1, 8)]
            stream.send(handles, np.stack([x[h, at[h] : at[h] + 1] for h in handles]), tag=len(frames))
            frames.append((handles, at[handles]))
            at[handles] += 1
        replies = {reply.tag: reply for reply in stream.end()}
    want = wholes("gru", x)
    for tag, (handles, positions) in enumerate(frames):
        np.testing.assert_allclose(replies[tag].y[:, 0], want[handles, positions], **CLOSE)


def test_a_chain_of_named_operations_may_be_in_flight(caller: Caller, session: str):
    x = rows("lstm", 3, 10)
    ids = [[new_id() for _ in range(3)] for _ in range(10)]
    with caller.stream("lstm", names(session, 3)) as stream:
        for t in range(10):
            afters = ids[t - 1] if t else []
            stream.send(range(3), x[:, t : t + 1], tag=t, ids=ids[t], afters=afters)
        replies = sorted(stream.end(), key=lambda reply: reply.tag)
    assert [reply.errors for reply in replies] == [{}] * 10
    np.testing.assert_allclose(np.concatenate([reply.y for reply in replies], 1), wholes("lstm", x), **CLOSE)


def test_a_frame_sent_again_gets_the_same_answer_and_applies_once(caller: Caller, session: str):
    x, ids = rows("lstm", 4, 3), [new_id() for _ in range(4)]
    with caller.stream("lstm", names(session, 4)) as stream:
        first, again = (stream.ask(range(4), x, ids=ids) for _ in range(2))
    np.testing.assert_array_equal(first.y, again.y)
    assert again.positions == [3] * 4
    assert again.raw.incarnations == first.raw.incarnations
    assert again.raw.created == first.raw.created


def test_a_frame_sent_again_in_flight_applies_once(caller: Caller, session: str):
    x, ids = rows("lstm", 4, 3), [new_id() for _ in range(4)]
    with caller.stream("lstm", names(session, 4)) as stream:
        for _ in range(5):
            stream.send(range(4), x, ids=ids)
        replies = stream.end()
    for reply in replies:
        np.testing.assert_allclose(reply.y, wholes("lstm", x), **CLOSE)
        assert reply.positions == [3] * 4


def test_what_if_in_frames_changes_nothing(caller: Caller, session: str):
    x = rows("lstm", 3, 6)
    with caller.stream("lstm", names(session, 3)) as stream:
        stream.ask(range(3), x[:, :2])
        if_ = stream.ask(range(3), x[:, 2:4], commit=False)
        after = stream.ask(range(3), x[:, 4:])
    np.testing.assert_allclose(if_.y, wholes("lstm", x[:, :4])[:, 2:], **CLOSE)
    np.testing.assert_allclose(after.y, wholes("lstm", x[:, [0, 1, 4, 5]])[:, 2:], **CLOSE)
    assert after.positions == [4] * 3


def test_rows_fail_alone(caller: Caller, session: str):
    x, ids = rows("lstm", 4, 2), [new_id() for _ in range(4)]
    with caller.stream("lstm", names(session, 4)) as stream:
        stream.ask(range(4), x, ids=ids)
        later = [new_id(), ids[1], new_id(), new_id()]
        reply = stream.ask(range(4), x + 1, ids=later, afters=[ids[0], bytes(16), new_id(), bytes(16)])
        assert {row: type(error) for row, error in reply.errors.items()} == {1: Diverged, 2: Behind}
        assert reply.errors[2].last_id == ids[2]
        for row in (0, 3):
            np.testing.assert_allclose(reply.y[row], LSTM.whole(x[row], x[row] + 1)[2:], **CLOSE)
        assert not reply.y[[1, 2]].any()
        again = stream.ask(range(4), x)
    assert again.positions == [6, 4, 4, 6]


def test_a_row_on_which_the_model_fails_leaves_its_batch_unharmed(caller: Caller, session: str):
    x = rows("picky", 5, 2)
    with caller.stream("picky", names(session, 5)) as stream:
        stream.ask(range(5), x)
        bad = x.copy()
        bad[1, 0, 0], bad[3, :, 1] = 2000, 3e38
        reply = stream.ask(range(5), bad)
        assert {row: type(error) for row, error in reply.errors.items()} == {1: RunFailed, 3: RunFailed}
        after = stream.ask(range(5), x)
    for row in range(5):
        chunks = [x[row]] * (2 if row in (1, 3) else 3)
        np.testing.assert_allclose(after.y[row], MODELS["picky"].whole(*chunks)[-2:], **CLOSE)
    assert after.positions == [6, 4, 6, 4, 6]


def test_a_frame_may_ask_for_new_or_known_sessions_only(caller: Caller, session: str):
    x = rows("lstm", 2, 1)
    with caller.stream("lstm", names(session, 2)) as stream:
        missing = stream.ask([0, 1], x, create=session_pb2.CREATE_NEVER)
        stream.ask([0], x[:1])
        mixed = stream.ask([0, 1], x, create=session_pb2.CREATE_NEW)
    assert [type(error) for error in missing.errors.values()] == [SessionNotFound] * 2
    assert {row: type(error) for row, error in mixed.errors.items()} == {0: SessionExists}
    assert mixed.raw.created == b"\0\1"


def test_handles_pass_from_session_to_session(caller: Caller, session: str):
    x = rows("lstm", 2, 2)
    one, two = names(session, 2)
    with caller.stream("lstm", [one]) as stream:
        stream.ask([0], x[:1])
        stream.unbind(0)
        stream.bind([two], [0])
        stream.ask([0], x[1:])
        stream.bind([one], [65_535])
        reply = stream.ask([65_535, 0], x)
    for row in (0, 1):
        np.testing.assert_allclose(reply.y[row], LSTM.whole(x[row], x[row])[2:], **CLOSE)


def test_unbinding_does_not_disturb_frames_in_flight(caller: Caller, session: str):
    x = rows("lstm", 2, 8)
    with caller.stream("lstm", names(session, 2)) as stream:
        for t in range(8):
            stream.send([0, 1], x[:, t : t + 1], tag=t)
        stream.unbind(0, 1)
        replies = sorted(stream.end(), key=lambda reply: reply.tag)
    np.testing.assert_allclose(np.concatenate([reply.y for reply in replies], 1), wholes("lstm", x), **CLOSE)


def _bind_twice(stream: Stream) -> None:
    stream.bind(["another"], [0])


def _bind_one_session_twice(stream: Stream) -> None:
    stream.bind(["one"], [5])


def _bind_too_few(stream: Stream) -> None:
    stream.bind(["two", "three"], [5])


def _bind_too_high(stream: Stream) -> None:
    stream.bind(["two"], [65_536])


def _bind_another_model(stream: Stream) -> None:
    stream.bind(["two"], [5], model="gru")


def _bind_no_name(stream: Stream) -> None:
    stream.bind([""], [5])


def _unbind_what_is_not_bound(stream: Stream) -> None:
    stream.unbind(7)


def _say_nothing(stream: Stream) -> None:
    stream.put()


def _send_no_handles(stream: Stream) -> None:
    stream.put(frame=inference_pb2.Frame())


def _send_half_a_handle(stream: Stream) -> None:
    stream.put(frame=inference_pb2.Frame(handles=b"\0\0\0"))


@pytest.mark.parametrize(
    "malformed",
    [
        _bind_twice,
        _bind_one_session_twice,
        _bind_too_few,
        _bind_too_high,
        _bind_another_model,
        _bind_no_name,
        _unbind_what_is_not_bound,
        _say_nothing,
        _send_no_handles,
        _send_half_a_handle,
    ],
)
def test_a_malformed_message_ends_the_stream_with_its_reason(caller: Caller, malformed):
    with caller.stream("lstm", ["one"]) as stream:
        malformed(stream)
        with pytest.raises(InvalidArgument) as refused:
            stream.reply()
    assert str(refused.value)


def test_the_first_message_of_a_stream_is_a_bind(caller: Caller):
    with Stream(caller) as stream:
        stream.send([0], LSTM.draw(0, 1)[None])
        with pytest.raises(InvalidArgument, match="bind"):
            stream.reply()


@pytest.mark.parametrize(("model", "error"), [("nobody", ModelNotFound), ("broken", ModelUnavailable)])
def test_a_stream_needs_a_model_that_is_served(caller: Caller, model: str, error: type[Exception]):
    with caller.stream(model, ["one"]) as stream, pytest.raises(error):
        stream.reply()


X = rows("lstm", 2, 3)


@pytest.mark.parametrize(
    ("handles", "x", "more"),
    [
        ([0, 0], X, {}),
        ([0, 7], X, {}),
        ([0, 70_000], X, {}),
        ([0, 1], X[:1], {}),
        ([0, 1], X[0], {}),
        ([0, 1], X[:, :0], {}),
        ([0, 1], X[:, :, :2], {}),
        ([0, 1], X.astype(np.float64), {}),
        ([0, 1], X * np.nan, {}),
        ([0, 1], {"z": X}, {}),
        ([0, 1], {}, {}),
        ([0, 1], X, {"ids": [bytes(15)]}),
        ([0, 1], X, {"afters": [new_id()]}),
        ([0, 1], X, {"lengths": [1]}),
        ([0, 1], X, {"lengths": [1, 4]}),
        ([0, 1], X, {"lengths": [0, 3]}),
        ([0, 1], X, {"create": 99}),
    ],
)
def test_a_malformed_frame_is_refused_and_the_stream_goes_on(caller: Caller, session: str, handles, x, more):
    with caller.stream("lstm", names(session, 2)) as stream:
        stream.ask([0, 1], X)
        refused = stream.ask(handles, x, tag=9, **more)
        good = stream.ask([0, 1], X)
    assert refused.tag == 9
    assert isinstance(refused.refused, InvalidArgument)
    np.testing.assert_allclose(good.y, wholes("lstm", np.concatenate([X, X], 1))[:, 3:], **CLOSE)
    assert good.positions == [6, 6]


def test_a_cancelled_stream_leaves_its_neighbours_unharmed(caller: Caller, session: str):
    x = rows("lstm", 20, 30)
    with caller.stream("lstm", names(session, 20)) as stream:
        for t in range(30):
            with caller.stream("lstm", names(f"{session} dying {t}", 20)) as dying:
                dying.send(range(20), x[:, :20])
                stream.send(range(20), x[:, t : t + 1], tag=t)
        replies = sorted(stream.end(), key=lambda reply: reply.tag)
    assert [reply.errors for reply in replies] == [{}] * 30
    np.testing.assert_allclose(np.concatenate([reply.y for reply in replies], 1), wholes("lstm", x), **CLOSE)


def test_a_cancelled_call_leaves_its_neighbours_unharmed(caller: Caller, session: str):
    xs = [LSTM.draw(seed, 50) for seed in range(40)]
    sent = [caller.send("lstm", f"{session} {row}", x) for row, x in enumerate(xs)]
    for pending in sent[::2]:
        pending.call.cancel()
    for row in range(1, 40, 2):
        np.testing.assert_allclose(sent[row].reply().y, LSTM.whole(xs[row]), **CLOSE)
    for row in range(0, 40, 2):  # applied or not, but whole
        reply = caller.predict("lstm", f"{session} {row}", xs[row][:1])
        assert reply.position in (1, 51)


def patiently(stream: Stream, handles: list[int], x: np.ndarray, ids: list[bytes]) -> FrameReply:
    """Send a frame until none of its rows is told to come back later: duplicates are answered from what was kept."""
    while True:
        reply = stream.ask(handles, x, ids=ids)
        if not isinstance(reply.refused, Overloaded):
            return reply


def test_more_sessions_than_slots_lose_nothing(start_server: StartServer, session: str):
    x = rows("gru", 30, 6)
    with Caller(start_server("--slots", "8").address) as caller, caller.stream("gru", names(session, 30)) as stream:
        got = np.zeros((30, 6, 4), np.float32)
        for t in range(6):
            for start in range(0, 30, 6):
                handles = list(range(start, start + 6))
                reply = patiently(stream, handles, x[handles, t : t + 1], [new_id() for _ in handles])
                assert reply.errors == {}
                got[handles, t] = reply.y[:, 0]
        np.testing.assert_allclose(got, wholes("gru", x), **CLOSE)
        # A frame of more sessions than slots could never be served; nothing is lost by it.
        over = stream.ask(range(30), x[:, :1])
        assert isinstance(over.refused, InvalidArgument)
        assert "--slots" in str(over.refused)
        assert [caller.get("gru", name).position for name in names(session, 30)] == [6] * 30


def test_calls_for_more_sessions_than_slots_lose_nothing(start_server: StartServer, session: str):
    x = rows("lstm", 25, 4)
    with Caller(start_server("--slots", "4").address) as caller:
        for t in range(4):
            for row, name in enumerate(names(session, 25)):
                reply = caller.predict("lstm", name, x[row, t : t + 1])
                np.testing.assert_allclose(reply.y, LSTM.whole(x[row, : t + 1])[t:], **CLOSE)
