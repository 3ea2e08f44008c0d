"""SessionService: reading, resetting, setting, ending and listing sessions."""

from __future__ import annotations

import numpy as np
import pytest

from recurra.v1 import session_pb2
from recurra.wire.errors import Behind, InvalidArgument, SessionClosed, SessionNotFound, Unimplemented
from tests.conftest import StartServer
from tests.service.caller import Caller, new_id, operation
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
X = LSTM.draw(0, 5)
ZEROS = np.zeros((1, 6), np.float32)


def check(caller: Caller, session: str, h: np.ndarray, c: np.ndarray) -> None:
    """The session continues from this state."""
    for values, want in zip(caller.state("lstm", session).values(), (h, c), strict=True):
        np.testing.assert_allclose(values, want, **CLOSE)
    np.testing.assert_allclose(caller.predict("lstm", session, X).y, LSTM.whole(X, state=(h, c)), **CLOSE)


def test_a_session_tells_where_it_stands(caller: Caller, session: str):
    first, second = (caller.predict("lstm", session, X).session for _ in range(2))
    got = caller.get("lstm", session)
    assert (got.model, got.version, got.session) == ("lstm", "1", session)
    assert (got.position, got.durable_position, got.created) == (10, 10, False)
    assert (got.incarnation, got.last_id) == (first.last_id, second.last_id)
    assert got.update_time.ToMilliseconds() >= first.update_time.ToMilliseconds() > 0


def test_a_model_tells_its_states_owners_and_shapes(caller: Caller):
    model = caller.model("lstm")
    assert [(state.name, state.layer, list(state.shape)) for state in model.states] == [
        ("lstm_1/h", "lstm_1", [1, 6]),
        ("lstm_1/c", "lstm_1", [1, 6]),
    ]
    assert [(spec.name, list(spec.shape), spec.has_time_axis) for spec in model.outputs] == [("y", [2], True)]
    assert model.state_bytes == 48


def test_a_reset_puts_a_session_back_to_the_fresh_state(caller: Caller, session: str):
    begun = caller.predict("lstm", session, X).session
    reset = caller.reset("lstm", session)
    assert (reset.position, reset.incarnation) == (0, begun.incarnation)
    assert caller.get("lstm", session).position == 0
    check(caller, session, ZEROS, ZEROS)


def test_a_reset_of_a_session_that_is_not_there_makes_it(caller: Caller, session: str):
    assert caller.reset("lstm", session).created
    check(caller, session, ZEROS, ZEROS)


def test_a_reset_may_name_a_layer(caller: Caller, session: str):
    caller.predict("lstm", session, X)
    caller.reset("lstm", session, "lstm_1")
    check(caller, session, ZEROS, ZEROS)


def test_a_reset_may_name_a_state_and_leaves_the_others(caller: Caller, session: str):
    caller.predict("lstm", session, X)
    h, _ = LSTM.after(X)
    caller.reset("lstm", session, "lstm_1/c")
    check(caller, session, h, ZEROS)


def test_a_reset_may_give_values(caller: Caller, session: str):
    caller.predict("lstm", session, X)
    h = np.full((1, 6), 0.4, np.float32)
    caller.reset("lstm", session, values={"lstm_1/h": h})
    check(caller, session, h, ZEROS)


@pytest.mark.parametrize(
    ("states", "values"),
    [
        (["lstm_2"], None),
        ([""], None),
        (["lstm_1/h"], {"lstm_1/c": ZEROS}),
        ([], {"lstm_1/x": ZEROS}),
        ([], {"lstm_1/h": ZEROS[0]}),
        ([], {"lstm_1/h": ZEROS + np.inf}),
        ([], {"lstm_1/h": ZEROS.astype(np.float64)}),
    ],
)
def test_a_reset_of_what_the_model_lacks_is_refused_whole(caller: Caller, session: str, states, values):
    caller.predict("lstm", session, X)
    with pytest.raises(InvalidArgument):
        caller.reset("lstm", session, *states, values=values)
    check(caller, session, *LSTM.after(X))


def test_many_sessions_are_reset_together_and_fail_alone(caller: Caller, session: str):
    names = [f"{session} {row}" for row in range(6)]
    for name in names:
        caller.predict("lstm", name, X)
    operations = [operation(new_id()) for _ in names]
    operations[2].after = new_id()
    operations[4].MergeFrom(operation(ttl=5.0))
    results = caller.reset_many("lstm", names, operations=operations)
    assert [type(result) for result in results] == [Behind if row == 2 else session_pb2.Session for row in range(6)]
    assert [caller.get("lstm", name).position for name in names] == [5 if row == 2 else 0 for row in range(6)]
    again = caller.reset_many("lstm", names[:2], operations=operations[:2])
    assert again == results[:2]


def test_more_sessions_than_slots_reset_together_are_done_or_told(start_server: StartServer):
    names = [f"s{row}" for row in range(12)]
    with Caller(start_server("--slots", "4").address) as caller:
        for name in names:
            caller.predict("lstm", name, X)
        results = caller.reset_many("lstm", names)
        done = [isinstance(result, session_pb2.Session) for result in results]
        assert any(done)
        assert [caller.get("lstm", name).position == 0 for name in names] == done


@pytest.mark.parametrize("names", [[], ["twice", "twice"], [""], ["fine", "not\nfine"], [str(n) for n in range(5000)]])
def test_a_reset_of_a_wrong_list_of_sessions_is_refused(caller: Caller, names: list[str]):
    with pytest.raises(InvalidArgument):
        caller.reset_many("lstm", names)


def test_a_reset_needs_an_operation_for_each_session_or_none(caller: Caller, session: str):
    with pytest.raises(InvalidArgument):
        caller.reset_many("lstm", [f"{session} 1", f"{session} 2"], operations=[operation()])


def test_a_state_read_and_set_elsewhere_continues_there(caller: Caller, session: str):
    caller.predict("lstm", session, X)
    copied = caller.set_state("lstm", f"{session} copy", caller.state("lstm", session))
    assert (copied.position, copied.created) == (0, True)
    check(caller, f"{session} copy", *LSTM.after(X))


def test_setting_one_state_leaves_the_others(caller: Caller, session: str):
    caller.predict("lstm", session, X)
    h, c = np.full((1, 6), 0.1, np.float32), LSTM.after(X)[1]
    assert caller.set_state("lstm", session, {"lstm_1/h": h}).position == 0
    check(caller, session, h, c)


@pytest.mark.parametrize(
    "states", [{}, {"lstm_1": ZEROS}, {"lstm_1/h": ZEROS[:, :3]}, {"lstm_1/h": ZEROS.astype(np.int32)}]
)
def test_setting_what_the_model_lacks_is_refused(caller: Caller, session: str, states):
    with pytest.raises(InvalidArgument):
        caller.set_state("lstm", session, states)
    with pytest.raises(SessionNotFound):
        caller.get("lstm", session)


def test_an_ended_session_answers_nobody(caller: Caller, session: str):
    last = caller.predict("lstm", session, X).id
    ended = caller.end("lstm", session)
    for call in (
        lambda: caller.get("lstm", session),
        lambda: caller.state("lstm", session),
        lambda: caller.predict("lstm", session, X),
        lambda: caller.predict("lstm", session, X, after=last),
        lambda: caller.predict("lstm", session, X, create=session_pb2.CREATE_NEW),
        lambda: caller.predict("lstm", session, X, commit=False),
        lambda: caller.reset("lstm", session),
        lambda: caller.end("lstm", session),
    ):
        with pytest.raises(SessionClosed) as closed:
            call()
        assert closed.value.metadata["last_id"] == ended.last_id.hex()


def test_an_ended_session_begins_anew_for_who_continues_its_end(caller: Caller, session: str):
    first = caller.predict("lstm", session, X).session
    ended = caller.end("lstm", session)
    assert (ended.position, ended.incarnation) == (5, first.incarnation)
    second = caller.predict("lstm", session, X, after=ended.last_id)
    np.testing.assert_allclose(second.y, LSTM.whole(X), **CLOSE)
    assert second.session.created
    assert second.position == 5
    assert second.session.incarnation != first.incarnation


def test_what_comes_late_from_an_earlier_life_never_touches_a_later_one(caller: Caller, session: str):
    first = caller.predict("lstm", session, X).session
    ended = caller.end("lstm", session)
    second = caller.predict("lstm", session, X, after=ended.last_id).session
    for after in (first.last_id, ended.last_id):
        with pytest.raises(Behind) as behind:
            caller.predict("lstm", session, X, after=after)
        assert behind.value.incarnation == second.incarnation
    check(caller, session, *LSTM.after(X))


def test_ending_what_is_not_there_is_told(caller: Caller, session: str):
    with pytest.raises(SessionNotFound):
        caller.end("lstm", session)


@pytest.mark.parametrize("read", ["get", "state"])
def test_reading_what_is_not_there_is_told(caller: Caller, session: str, read: str):
    with pytest.raises(SessionNotFound):
        getattr(caller, read)("lstm", session)


def test_forking_is_not_there_yet(caller: Caller, session: str):
    with pytest.raises(Unimplemented):
        caller.call(caller.sessions.ForkSession, session_pb2.ForkSessionRequest(model="lstm", session=session))


def test_all_live_sessions_of_a_model_are_listed_page_by_page(start_server: StartServer):
    with Caller(start_server().address) as caller:
        names = {f"s{row} {{ü}}" for row in range(40)}
        for name in names | {"ended"}:
            caller.predict("cell", name, MODELS["cell"].draw(0, 3))
        caller.predict("gru", "of another model", MODELS["gru"].draw(0, 1))
        caller.end("cell", "ended")
        found, token, pages = {}, "", 0
        while pages == 0 or token:
            page = caller.page("cell", 10, token)
            found |= {each.session: each for each in page.sessions}
            token, pages = page.next_page_token, pages + 1
        assert found.keys() == names
        assert pages > 2
        assert all(each == caller.get("cell", name) for name, each in found.items())


@pytest.mark.parametrize(("size", "token"), [(-1, ""), (1, "x"), (1, "-1"), (1, "9" * 20), (1, "1" * 30)])
def test_a_page_that_is_none_is_refused(caller: Caller, size: int, token: str):
    with pytest.raises(InvalidArgument):
        caller.page("lstm", size, token)
