"""Exactly once: what a session's store and its clients can do to an operation, and what each is told."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import redis

from recurra.server.store import record
from recurra.v1 import session_pb2
from recurra.wire.errors import (
    AlreadyApplied,
    Behind,
    DataLoss,
    DeadlineExceeded,
    Diverged,
    Mismatch,
    ModelChanged,
    RecurraError,
    SessionExists,
    SessionExpired,
    SessionNotFound,
    StateReset,
    StoreFull,
)
from tests.conftest import StartServer
from tests.models import graphs
from tests.service import zoo
from tests.service.caller import Caller, Reply, new_id
from tests.service.conftest import key
from tests.service.processes import ServerProcess, eventually, store_client
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
X = LSTM.draw(0, 5)


@pytest.mark.parametrize(
    "options", [{}, {"return_states": True}, {"return_sequences": False}, {"mask": [1, 0, 1, 1, 0]}]
)
def test_a_retry_gets_the_kept_reply_and_applies_nothing(caller: Caller, other: Caller, session: str, options):
    identity = new_id()
    first = caller.predict("lstm", session, X, id=identity, **options)
    for again in (caller.predict("lstm", session, X, id=identity, **options) for caller in (caller, other)):
        assert again.duplicate
        assert not first.duplicate
        assert again.session == first.session
        assert again.raw.outputs == first.raw.outputs
        assert again.raw.states == first.raw.states
    assert caller.get("lstm", session).position == first.position


def test_a_retry_of_a_reset_a_set_or_an_end_changes_nothing_more(caller: Caller, other: Caller, session: str):
    caller.predict("lstm", session, X)
    h = {"lstm_1/h": np.ones((1, 6), np.float32)}
    calls = [
        lambda caller, identity: caller.reset("lstm", session, id=identity),
        lambda caller, identity: caller.set_state("lstm", session, h, id=identity),
        lambda caller, identity: caller.end("lstm", session, id=identity),
    ]
    for call in calls:
        identity = new_id()
        first = call(caller, identity)
        assert first.last_id == identity
        assert call(caller, identity) == first
        assert call(other, identity) == first


def test_an_operation_in_flight_many_times_on_two_servers_applies_once(caller: Caller, other: Caller, session: str):
    for _ in range(5):
        identity = new_id()
        sent = [(caller, other)[n % 2].send("lstm", session, X, id=identity) for n in range(8)]
        replies = [pending.reply() for pending in sent]
        assert len({reply.y.tobytes() for reply in replies}) == 1
        assert len({reply.session.SerializeToString() for reply in replies}) == 1
    assert caller.get("lstm", session).position == 25


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (X + 1, {}),
        (X[:4], {}),
        (X, {"return_states": True}),
        (X, {"return_sequences": False}),
        (X, {"initial": {"lstm_1/h": np.zeros((1, 6), np.float32)}}),
    ],
)
def test_an_id_that_came_with_another_input_is_told(caller: Caller, other: Caller, session: str, x, options):
    first = caller.predict("lstm", session, X, id=new_id())
    for each in (caller, other):
        with pytest.raises(Diverged) as diverged:
            each.predict("lstm", session, x, id=first.id, **options)
        assert diverged.value.last_id == first.id
        assert diverged.value.position == 5
        assert diverged.value.incarnation == first.session.incarnation
    assert caller.get("lstm", session).position == 5


def test_an_id_that_came_with_another_kind_of_operation_is_told(caller: Caller, session: str):
    first = caller.predict("lstm", session, X, id=new_id())
    with pytest.raises(Diverged):
        caller.reset("lstm", session, id=first.id)
    with pytest.raises(Diverged):
        caller.end("lstm", session, id=first.id)


def test_who_continues_what_is_not_the_last_operation_is_told_which_is(caller: Caller, other: Caller, session: str):
    first = caller.predict("lstm", session, X)
    second = other.predict("lstm", session, X, after=first.id)
    for each in (caller, other):
        for after in (first.id, new_id()):
            with pytest.raises(Behind) as behind:
                each.predict("lstm", session, X, after=after)
            assert (behind.value.last_id, behind.value.position) == (second.id, 10)
    assert caller.predict("lstm", session, X, after=second.id).position == 15


def test_of_two_that_continue_the_same_operation_one_wins(caller: Caller, other: Caller, session: str):
    last = caller.predict("lstm", session, X).id
    want = 5
    for _ in range(10):
        ids = [new_id() for _ in range(4)]
        sent = [(caller, other)[n % 2].send("lstm", session, X, id=ids[n], after=last) for n in range(4)]
        outcomes = [pending.outcome() for pending in sent]
        refused = [outcome for outcome in outcomes if isinstance(outcome, RecurraError)]
        assert [type(error) for error in refused] == [Behind] * 3
        want += 5
        now = caller.get("lstm", session)
        assert now.position == want
        [last] = {error.last_id for error in refused if isinstance(error, Mismatch)}
        assert last == now.last_id


def test_many_that_continue_whatever_is_there_all_apply(caller: Caller, other: Caller, session: str):
    sent = [(caller, other)[n % 2].send("lstm", session, X) for n in range(8)]
    applied = [pending.outcome() for pending in sent]
    refused = [outcome for outcome in applied if isinstance(outcome, RecurraError)]
    assert {error.reason for error in refused} <= {"CONTENDED"}
    assert caller.get("lstm", session).position == 5 * (8 - len(refused))


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("timesteps", [1, 200, 5000])
def test_what_follows_a_commit_that_failed_is_run_anew(
    caller: Caller, other: Caller, session: str, timesteps: int, *, commit: bool
):
    """One server runs both operations from an old copy; while the second is run the first one's commit fails."""
    cell = MODELS["cell"]
    x, tail, identity = cell.draw(3, 2), cell.draw(4, timesteps), new_id()
    first = caller.predict("cell", session, x)
    other.predict("cell", session, x, after=first.id)
    sent = [
        caller.send("cell", session, x, id=identity),
        caller.send("cell", session, tail, after=identity, commit=commit),
    ]
    outcomes = [pending.outcome() for pending in sent]
    if isinstance(outcomes[1], Behind):  # it overtook the one before it on its way
        outcomes[1] = caller.predict("cell", session, tail, after=identity, commit=commit)
    got = np.concatenate([outcome.y for outcome in outcomes if isinstance(outcome, Reply)])
    np.testing.assert_allclose(got, cell.whole(x, x, x, tail)[4:], **CLOSE)


@pytest.mark.parametrize("change", ["reset", "set"])
def test_who_continues_a_session_that_was_reset_is_told(caller: Caller, other: Caller, session: str, change: str):
    first = caller.predict("lstm", session, X)
    if change == "reset":
        reset = other.reset("lstm", session)
    else:
        reset = other.set_state("lstm", session, {"lstm_1/h": np.ones((1, 6), np.float32)})
    with pytest.raises(StateReset) as told:
        caller.predict("lstm", session, X, after=first.id)
    assert (told.value.last_id, told.value.position) == (reset.last_id, 0)
    assert caller.predict("lstm", session, X, after=reset.last_id).position == 5


def test_a_session_that_must_be_new_and_is_not_is_told(caller: Caller, other: Caller, session: str):
    first = caller.predict("lstm", session, X, id=new_id(), create=session_pb2.CREATE_NEW)
    assert caller.predict("lstm", session, X, id=first.id, create=session_pb2.CREATE_NEW).duplicate
    for each in (caller, other):
        with pytest.raises(SessionExists) as exists:
            each.predict("lstm", session, X, create=session_pb2.CREATE_NEW)
        assert exists.value.last_id == first.id
    assert caller.get("lstm", session).position == 5


@pytest.mark.parametrize("later", [1, record.RECENT])
def test_a_late_retry_of_an_operation_that_is_remembered_is_told(
    caller: Caller, other: Caller, session: str, later: int
):
    """Also one that named no `after`, and would be applied again otherwise."""
    caller.predict("lstm", session, X)
    identity = new_id()
    for late in (identity, *(b"" for _ in range(later))):
        caller.predict("lstm", session, X, id=late)
    for each in (caller, other):
        with pytest.raises(AlreadyApplied) as applied:
            each.predict("lstm", session, X, id=identity)
        assert applied.value.metadata["position"] == str(5 * (later + 2))


def test_a_late_retry_of_what_created_the_session_is_told(caller: Caller, other: Caller, session: str):
    first = caller.predict("lstm", session, X, id=new_id())
    for _ in range(record.RECENT + 2):
        caller.predict("lstm", session, X)
    for each in (caller, other):
        with pytest.raises(AlreadyApplied):
            each.predict("lstm", session, X, id=first.id)


def test_a_call_whose_deadline_passes_is_applied_once_when_it_is_retried(caller: Caller, session: str):
    cell, timeout, passed = MODELS["cell"], 0.0001, 0
    x, last = cell.draw(5, 200), b""
    for number in range(1, 9):
        identity = new_id()
        try:
            caller.predict("cell", session, x, id=identity, after=last, timeout=timeout * 2**number)
        except DeadlineExceeded:
            passed += 1
        reply = caller.predict("cell", session, x, id=identity, after=last)
        assert reply.position == 200 * number
        np.testing.assert_allclose(reply.y, cell.whole(*[x] * number)[-200:], **CLOSE)
        last = identity
    assert passed


def test_a_retry_whose_reply_was_too_large_to_keep_is_told(caller: Caller, other: Caller, session: str):
    x = LSTM.draw(1, 3000)
    first = caller.predict("lstm", session, x, id=new_id())
    np.testing.assert_allclose(first.y, LSTM.whole(x), rtol=0, atol=1e-4)
    for each in (caller, other):
        with pytest.raises(AlreadyApplied) as applied:
            each.predict("lstm", session, x, id=first.id)
        assert applied.value.metadata["position"] == "3000"
    assert caller.predict("lstm", session, X, after=first.id).position == 3005


def test_an_expired_session_is_told_apart_from_a_lost_one(caller: Caller, other: Caller, session: str):
    first = caller.predict("lstm", session, X, ttl=0.05)
    told = first.session.expire_time
    eventually(lambda: time.time() * 1000 > told.ToMilliseconds() + 50)
    for each in (caller, other):
        with pytest.raises(SessionExpired):
            each.predict("lstm", session, X, after=first.id, expire=told)
    fresh = caller.predict("lstm", session, X, expire=told)
    assert fresh.session.created
    np.testing.assert_allclose(fresh.y, LSTM.whole(X), **CLOSE)


def test_a_session_that_the_store_lost_is_told(caller: Caller, other: Caller, session: str, store: redis.Redis):
    first = caller.predict("lstm", session, X)
    assert store.delete(key("lstm", session)) == 1
    for each in (caller, other):
        with pytest.raises(DataLoss):
            each.predict("lstm", session, X, after=first.id, expire=first.session.expire_time)
        with pytest.raises(SessionNotFound):
            each.predict("lstm", session, X, create=session_pb2.CREATE_NEVER)
    assert not store.exists(key("lstm", session))


def test_a_server_that_still_has_what_the_store_lost_never_starts_it_afresh_in_silence(
    caller: Caller, session: str, store: redis.Redis
):
    caller.predict("lstm", session, X)
    assert store.delete(key("lstm", session)) == 1
    with pytest.raises(DataLoss):
        caller.predict("lstm", session, X)  # it named nothing that it continues


def test_in_a_frame_what_the_store_lost_fails_alone(caller: Caller, other: Caller, session: str, store: redis.Redis):
    names, x = [f"{session} {row}" for row in range(3)], np.stack([X] * 3)
    ids = [new_id() for _ in names]
    with caller.stream("lstm", names) as stream, other.stream("lstm", names) as elsewhere:
        told = stream.ask(range(3), x, ids=ids).raw.expire_time
        store.delete(key("lstm", names[1]))
        for each, row in ((elsewhere, 0), (stream, 2)):  # one reads it from the store, one has it yet
            reply = each.ask([row, 1], x[:2], afters=[ids[row], ids[1]], expire_time=told)
            assert {at: type(error) for at, error in reply.errors.items()} == {1: DataLoss}
            np.testing.assert_allclose(reply.y[0], LSTM.whole(X, X)[5:], **CLOSE)


def test_an_operation_continued_in_a_session_that_never_was_is_told(caller: Caller, session: str):
    with pytest.raises(SessionNotFound):
        caller.predict("lstm", session, X, after=new_id())


def damage(store: redis.Redis, session: str, what: str) -> None:
    """Change the record of a session of "lstm" in the store."""
    at = key("lstm", session)
    if what == "state":
        end = store.strlen(at)
        byte = store.getrange(at, end - 80, end - 80)[0]
        store.setrange(at, end - 80, bytes([byte ^ 1]))
    elif what == "cut":
        store.set(at, store.get(at)[:-8])
    elif what == "stub":
        store.set(at, store.get(at)[:20])
    elif what == "empty":
        store.set(at, b"")
    elif what == "foreign":
        store.set(at, b"somebody's own")
    elif what == "of another session":
        store.set(at, store.get(key("lstm", f"{session} neighbour")))
    elif what == "of a later format":
        store.setrange(at, 3, bytes([2]))
    elif what == "a list":
        store.delete(at)
        store.rpush(at, "a list")


DAMAGES = ["state", "cut", "stub", "foreign", "of another session", "of a later format", "a list", "empty"]


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_record_fails_its_session_alone(
    caller: Caller, other: Caller, session: str, store: redis.Redis, what: str
):
    neighbour = f"{session} neighbour"
    last = caller.predict("lstm", session, X).id
    caller.predict("lstm", neighbour, X)
    damage(store, session, what)
    damaged = store.dump(key("lstm", session))
    with other.stream("lstm", [session, neighbour]) as stream:
        reply = stream.ask([0, 1], np.stack([X, X]))
        assert {row: type(error) for row, error in reply.errors.items()} == {0: DataLoss}
        np.testing.assert_allclose(reply.y[1], LSTM.whole(X, X)[5:], **CLOSE)
    for call in (
        lambda: other.predict("lstm", session, X, after=last),
        lambda: other.predict("lstm", session, X, commit=False),
        lambda: other.get("lstm", session),
        lambda: other.state("lstm", session),
        lambda: other.reset("lstm", session),
    ):
        with pytest.raises(DataLoss) as lost:
            call()
    if what == "of a later format":
        assert "newer release" in str(lost.value)
    assert store.dump(key("lstm", session)) == damaged
    store.delete(key("lstm", session))


def test_damaged_records_leave_the_list_of_sessions_whole(caller: Caller, session: str, store: redis.Redis):
    for what in DAMAGES:
        for name in (f"{session} {what}", f"{session} {what} neighbour"):
            caller.predict("lstm", name, X)
        damage(store, f"{session} {what}", what)
    store.setrange(key("lstm", f"{session} state"), record.HEADER.itemsize, b"\xff\xfe")  # a name that is no text
    found, token = set(), "0"
    while token:
        page = caller.page("lstm", 1000, token)
        found |= {each.session for each in page.sessions}
        token = page.next_page_token
    assert {f"{session} {what} neighbour" for what in DAMAGES} <= found
    for what in DAMAGES:
        store.delete(key("lstm", f"{session} {what}"))


@pytest.fixture(scope="module")
def changed(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """A server on the same store whose "lstm" has states of another shape."""
    models = tmp_path_factory.mktemp("models")
    graphs.write(zoo.lstm(hidden=7).built, models, "lstm", version="2")
    store = f"unix://{server.store_socket}"
    process = ServerProcess(models, tmp_path_factory.mktemp("data"), store=store)
    try:
        with Caller(process.start().address) as caller:
            yield caller
    finally:
        process.close()


def test_a_state_of_another_layout_is_never_run(caller: Caller, changed: Caller, session: str):
    first = caller.predict("lstm", session, X)
    for call in (
        lambda: changed.predict("lstm", session, X),
        lambda: changed.predict("lstm", session, X, after=first.id),
        lambda: changed.predict("lstm", session, X, commit=False),
        lambda: changed.state("lstm", session),
        lambda: changed.reset("lstm", session, "lstm_1/h"),
        lambda: changed.set_state("lstm", session, {"lstm_1/h": np.zeros((1, 7), np.float32)}),
    ):
        with pytest.raises(ModelChanged):
            call()
    assert caller.predict("lstm", session, X, after=first.id).position == 10


def test_a_whole_reset_takes_a_session_over_to_the_changed_model(caller: Caller, changed: Caller, session: str):
    caller.predict("lstm", session, X)
    changed.reset("lstm", session)
    np.testing.assert_allclose(changed.predict("lstm", session, X).y, zoo.lstm(hidden=7).whole(X), **CLOSE)
    with pytest.raises(ModelChanged):
        caller.predict("lstm", session, X)


def test_a_session_of_another_layout_can_be_ended(caller: Caller, changed: Caller, session: str):
    caller.predict("lstm", session, X)
    ended = changed.end("lstm", session)
    again = changed.predict("lstm", session, X, after=ended.last_id)
    np.testing.assert_allclose(again.y, zoo.lstm(hidden=7).whole(X), **CLOSE)


def test_a_flushed_script_cache_is_invisible(caller: Caller, session: str, store: redis.Redis):
    xs = np.stack([LSTM.draw(seed, 6) for seed in range(5)])
    names = [f"{session} {row}" for row in range(5)]
    with caller.stream("lstm", names) as stream:
        for t in range(6):
            store.script_flush()
            reply = stream.ask(range(5), xs[:, t : t + 1])
            assert reply.errors == {}
            for row in range(5):
                np.testing.assert_allclose(reply.y[row], LSTM.whole(xs[row, : t + 1])[t:], **CLOSE)


def test_a_flushed_script_cache_is_invisible_to_what_is_in_flight(caller: Caller, session: str, store: redis.Redis):
    x = LSTM.draw(2, 90)
    with caller.stream("lstm", [session]) as stream:
        for t in range(90):
            if t % 30 == 0:
                store.script_flush()
            stream.send([0], x[None, t : t + 1], tag=t)
        replies = sorted(stream.end(), key=lambda reply: reply.tag)
    assert [reply.errors for reply in replies] == [{}] * 90
    np.testing.assert_allclose(np.concatenate([reply.y[0] for reply in replies]), LSTM.whole(x), **CLOSE)


def test_a_full_store_refuses_and_leaves_the_session_as_it_was(start_server: StartServer, session: str):
    server = start_server()
    with Caller(server.address) as caller, store_client(server.store_socket) as store:
        first = caller.predict("lstm", session, X)
        identity = new_id()
        store.config_set("maxmemory", 1)
        for call in (
            lambda: caller.predict("lstm", session, X, id=identity, after=first.id),
            lambda: caller.predict("lstm", f"{session} new", X),
            lambda: caller.reset("lstm", session),
        ):
            with pytest.raises(StoreFull):
                call()
        now = caller.get("lstm", session)
        assert (now.last_id, now.position) == (first.id, 5)
        np.testing.assert_allclose(caller.predict("lstm", session, X, commit=False).y, LSTM.whole(X, X)[5:], **CLOSE)
        store.config_set("maxmemory", 0)
        again = caller.predict("lstm", session, X, id=identity, after=first.id)
        np.testing.assert_allclose(again.y, LSTM.whole(X, X)[5:], **CLOSE)
        assert again.position == 10


def test_a_store_that_restarts_empty_shows_as_loss(start_server: StartServer, session: str):
    server = start_server()
    with Caller(server.address) as caller, store_client(server.store_socket) as store:
        first = caller.predict("lstm", session, X)
        store.flushall()
        with pytest.raises(DataLoss):
            caller.predict("lstm", session, X, after=first.id, expire=first.session.expire_time)


def test_a_store_rolled_back_is_told_and_never_forked(caller: Caller, session: str, store: redis.Redis):
    first = caller.predict("lstm", session, X)
    kept = store.dump(key("lstm", session))
    second = caller.predict("lstm", session, X, after=first.id)
    store.restore(key("lstm", session), 60_000, kept, replace=True)
    with pytest.raises(Behind) as behind:
        caller.predict("lstm", session, X, after=second.id)
    assert (behind.value.last_id, behind.value.position) == (first.id, 5)
    replayed = caller.predict("lstm", session, X, id=second.id, after=first.id)
    np.testing.assert_allclose(replayed.y, second.y, **CLOSE)
    assert caller.predict("lstm", session, X, after=second.id).position == 15
