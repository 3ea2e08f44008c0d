"""The history's rules, against a session that answers as the server does, over a network that loses what it likes."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.client.course import ROUNDS, perform
from recurra.client.history import History
from recurra.client.operation import Create, Look, Operation, Reply, doubtful
from recurra.client.standing import Standing
from recurra.client.window import Window
from recurra.wire.errors import (
    AlreadyApplied,
    Behind,
    Contended,
    DataLoss,
    Diverged,
    Overloaded,
    RecurraError,
    RunFailed,
    SessionClosed,
    SessionExists,
    SessionNotFound,
    StateReset,
    StoreUnavailable,
    Unreachable,
    WrongIncarnation,
)


class Session:
    """A session in the store, and what its server answers: `life` is what was applied since it was created."""

    def __init__(self) -> None:
        self.life: list[tuple[bytes, object]] = []
        self.closed = False

    def _at(self, cls: type[RecurraError]) -> RecurraError:
        return cls(
            "",
            last_id=self.life[-1][0].hex(),
            incarnation=self.life[0][0].hex(),
            position=str(len(self.life)),
        )

    def answer(self, step: Operation | Look) -> Reply | RecurraError:
        if isinstance(step, Look):
            if not self.life:
                return SessionNotFound("")
            return self._at(SessionClosed) if self.closed else self._reply(self.life[-1][0])
        refused = self._refused(step) if self.life else self._missing(step)
        if refused is not None:
            return refused
        if self.life and self.life[-1][0] == step.id:
            return self._reply(step.id)
        if not step.dry:
            self.life = [*([] if self.closed else self.life), (step.id, step.request)]
            self.closed = step.ends
        return self._reply(step.id)

    def _missing(self, step: Operation) -> RecurraError | None:
        if step.after:
            return DataLoss("")
        return SessionNotFound("") if step.create is Create.NEVER else None

    def _refused(self, step: Operation) -> RecurraError | None:
        last, request = self.life[-1]
        if last == step.id:
            return None if request == step.request else self._at(Diverged)
        if self.life[0][0] == step.id:
            return self._at(AlreadyApplied)
        if self.closed:
            return None if step.after == last and step.create is not Create.NEVER else self._at(SessionClosed)
        if step.create is Create.NEW and not step.after:
            return self._at(SessionExists)
        if step.after not in (b"", last):
            return self._at(StateReset if request == "reset" else Behind)
        return None

    def _reply(self, last: bytes) -> Reply:
        incarnation = self.life[0][0] if self.life else b""
        return Reply(Standing(incarnation=incarnation, position=len(self.life), last_id=last), None)

    def somebody(self, request: object = "theirs") -> bytes:
        """Another client's operation, on whatever is there."""
        self.life.append((next(IDS), request))
        self.closed = False
        return self.life[-1][0]

    @property
    def requests(self) -> list[object]:
        return [request for _, request in self.life]


IDS = (number.to_bytes(16, "big") for number in count(1 << 64))
LOST = Unreachable("lost")


def make(**options: object) -> History:
    numbers = count(1)
    options = {"create": "if_missing", "window": Window(1 << 20), **options}
    window = options.pop("window")
    return History(window, entropy=lambda size: next(numbers).to_bytes(size, "big"), **options)


def run(history: History, session: Session, operation: Operation, faults: str = "") -> Reply:
    """Perform; each letter of `faults` is the fate of one attempt: . arrives, < its reply is lost, x it is lost."""
    course, fates = perform(history, operation), iter(faults)
    step = next(course)
    try:
        while True:
            fate = next(fates, ".")
            outcome: Reply | RecurraError = LOST if fate == "x" else session.answer(step)
            if fate != ".":
                outcome = LOST
                if isinstance(step, Operation):
                    step.unsure = True
            step = course.send(outcome)
    except StopIteration as done:
        return done.value


def predict(history: History, session: Session, request: object, faults: str = "") -> Reply:
    return run(history, session, history.name(request, 10), faults)


def failing(history: History, session: Session, request: object, faults: str) -> None:
    with pytest.raises(Unreachable):
        predict(history, session, request, faults)


def test_a_first_operation_creates_and_the_next_continue_it() -> None:
    history, session = make(), Session()
    for request in "abc":
        predict(history, session, request)
    assert session.requests == ["a", "b", "c"]
    assert history.standing is not None
    assert history.standing.position == 3
    assert history.settled


def test_a_first_operation_continues_a_session_that_is_there() -> None:
    history, session = make(), Session()
    last = session.somebody()
    operation = history.name("a", 1)
    run(history, session, operation)
    assert operation.after == last
    assert session.requests == ["theirs", "a"]


def test_a_first_operation_keeps_up_with_a_session_that_others_write_meanwhile() -> None:
    history, session = make(), Session()
    session.somebody()
    course = perform(history, history.name("a", 1))
    exists = session.answer(next(course))
    step = course.send(exists)
    session.somebody()
    step = course.send(session.answer(step))
    with pytest.raises(StopIteration):
        course.send(session.answer(step))
    assert session.requests == ["theirs", "theirs", "a"]


def test_a_session_that_must_be_new_is_not() -> None:
    history, session = make(create="must_be_new"), Session()
    session.somebody()
    with pytest.raises(SessionExists):
        predict(history, session, "a")
    assert session.requests == ["theirs"]


def test_a_session_that_must_exist_does_not() -> None:
    history, session = make(create="must_exist"), Session()
    with pytest.raises(SessionNotFound):
        predict(history, session, "a")
    session.somebody()
    predict(history, session, "a")
    assert session.requests == ["theirs", "a"]


def test_a_session_that_was_ended_begins_a_new_life() -> None:
    history, session = make(), Session()
    session.somebody()
    session.closed = True
    predict(history, session, "a")
    assert session.requests == ["a"]


def test_its_own_end_begins_a_new_life() -> None:
    history, session = make(), Session()
    predict(history, session, "a")
    run(history, session, history.name("end", 1, ends=True))
    assert history.ended
    predict(history, session, "b")
    assert session.requests == ["b"]


def test_ending_needs_a_session() -> None:
    history, session = make(), Session()
    with pytest.raises(SessionNotFound):
        run(history, session, history.name("end", 1, ends=True))
    session.somebody()
    run(history, session, history.name("end", 1, ends=True))
    assert session.closed


def test_what_was_ended_cannot_be_ended_again() -> None:
    history, session = make(), Session()
    predict(history, session, "a")
    run(history, session, history.name("end", 1, ends=True))
    with pytest.raises(SessionClosed):
        run(history, session, history.name("again", 1, ends=True))
    assert session.requests == ["a", "end"]


def test_asking_again_after_a_lost_reply_is_a_retry() -> None:
    history, session = make(), Session()
    failing(history, session, "a", "<")
    predict(history, session, "a")
    failing(history, session, "b", "<")
    predict(history, session, "b")
    assert session.requests == ["a", "b"]
    assert history.settled


def test_asking_something_else_after_a_lost_reply_continues_what_was_applied() -> None:
    history, session = make(), Session()
    failing(history, session, "a", "<")
    predict(history, session, "b")
    failing(history, session, "c", "<")
    failing(history, session, "d", "<")
    predict(history, session, "e")
    assert session.requests == ["a", "b", "c", "e"]


def test_asking_something_else_after_a_lost_request_leaves_it_out_for_good() -> None:
    history, session = make(), Session()
    predict(history, session, "a")
    late = history.name("b", 1)
    with pytest.raises(Unreachable):
        run(history, session, late, "x")
    predict(history, session, "c")
    assert isinstance(session.answer(late), Behind)
    assert session.requests == ["a", "c"]


def test_a_create_that_others_built_upon_is_not_applied_again() -> None:
    history, session = make(), Session()
    failing(history, session, "a", "<")
    session.somebody()
    with pytest.raises(AlreadyApplied):
        predict(history, session, "a")
    with pytest.raises(Diverged):
        predict(history, session, "b")
    assert session.requests == ["a", "theirs"]


def test_an_operation_that_may_be_what_others_built_upon_is_not_applied_again() -> None:
    history, session = make(), Session()
    session.somebody()
    failing(history, session, "a", ".<")
    session.somebody()
    with pytest.raises(Diverged):
        predict(history, session, "a")
    assert session.requests == ["theirs", "a", "theirs"]


def test_what_the_store_lost_is_replayed() -> None:
    history, session = make(), Session()
    for request in "abcd":
        predict(history, session, request)
    del session.life[2:]
    predict(history, session, "e")
    assert session.requests == list("abcde")


def test_replay_goes_on_where_an_earlier_replay_was_cut() -> None:
    history, session = make(), Session()
    for request in "abcd":
        predict(history, session, request)
    del session.life[1:]
    failing(history, session, "e", "..x")
    predict(history, session, "e")
    assert session.requests == list("abcde")


def test_replay_starts_from_what_the_handle_found() -> None:
    history, session = make(), Session()
    session.somebody()
    for request in "ab":
        predict(history, session, request)
    del session.life[1:]
    predict(history, session, "c")
    assert session.requests == ["theirs", "a", "b", "c"]


def test_beyond_the_window_nothing_is_replayed() -> None:
    history, session = make(window=Window(600)), Session()
    for request in "abcd":
        predict(history, session, request)
    del session.life[1:]
    with pytest.raises(Diverged):
        predict(history, session, "e")
    assert session.requests == ["a"]


def test_what_is_larger_than_the_window_is_not_kept_once_it_is_applied() -> None:
    history, session = make(window=Window(0)), Session()
    for request in "abc":
        predict(history, session, request)
    assert {operation.request for operation in history._applied} == {None}
    del session.life[1:]
    with pytest.raises(Diverged):
        predict(history, session, "d")


def test_a_session_that_is_gone_is_told() -> None:
    history, session = make(), Session()
    predict(history, session, "a")
    session.life = []
    with pytest.raises(DataLoss):
        predict(history, session, "b")
    history.follow(None)
    predict(history, session, "b")
    assert session.requests == ["b"]


@pytest.mark.parametrize(("theirs", "error"), [("theirs", Diverged), ("reset", StateReset)])
def test_what_others_wrote_is_told_and_can_be_followed(theirs: str, error: type[RecurraError]) -> None:
    history, session = make(), Session()
    predict(history, session, "a")
    session.somebody(theirs)
    for _ in range(2):
        with pytest.raises(error):
            predict(history, session, "b")
    told = session.answer(Look())
    assert isinstance(told, Reply)
    history.follow(told.standing)
    predict(history, session, "b")
    assert session.requests == ["a", theirs, "b"]


def test_another_life_is_told() -> None:
    history, session = make(), Session()
    predict(history, session, "a")
    session.life = []
    session.somebody()
    with pytest.raises(WrongIncarnation) as caught:
        predict(history, session, "b")
    assert caught.value.last_id == session.life[-1][0]


def test_an_end_by_others_is_told() -> None:
    history, session = make(), Session()
    predict(history, session, "a")
    session.somebody()
    session.closed = True
    with pytest.raises(SessionClosed):
        predict(history, session, "b")


def test_what_if_changes_nothing_here_or_there() -> None:
    history, session = make(), Session()
    predict(history, session, "a")
    run(history, session, history.name("b", 1, dry=True))
    assert history.settled
    predict(history, session, "c")
    del session.life[1:]
    run(history, session, history.name("d", 1, dry=True))
    assert session.requests == ["a", "c"]


def test_a_refused_operation_is_forgotten() -> None:
    history, session = make(), Session()
    predict(history, session, "a")
    course = perform(history, history.name("b", 1))
    next(course)
    with pytest.raises(RunFailed):
        course.send(RunFailed(""))
    assert history.settled


def test_an_operation_that_is_cut_off_stays_known() -> None:
    history, session = make(), Session()
    predict(history, session, "a")
    operation = history.name("b", 1)
    course = perform(history, operation)
    session.answer(next(course))
    operation.unsure = True
    course.close()
    assert not history.settled
    predict(history, session, "c")
    assert session.requests == ["a", "b", "c"]


def test_queued_operations_apply_in_order_and_a_lost_reply_behind_others_is_told() -> None:
    history, session = make(), Session()
    predict(history, session, "a")
    queued = [history.queue(request, 1) for request in "bcd"]
    for operation in queued:
        operation.unsure = True
    for operation in queued[:2]:
        session.answer(operation)
    with pytest.raises(AlreadyApplied):
        run(history, session, queued[0])
    assert history.last == queued[1].id
    run(history, session, queued[2])
    assert session.requests == list("abcd")


def test_queued_operations_are_performed_one_by_one_after_a_break() -> None:
    history, session = make(), Session()
    predict(history, session, "a")
    queued = [history.queue(request, 1) for request in "bcd"]
    session.answer(queued[0])
    for operation in queued:
        operation.unsure = True
    for operation in queued:
        run(history, session, operation)
    assert session.requests == list("abcd")
    assert history.settled


def test_what_was_queued_and_left_is_found_where_the_session_stands() -> None:
    history, session = make(), Session()
    predict(history, session, "a")
    queued = [history.queue(request, 1) for request in "bcd"]
    for operation in queued:
        operation.unsure = True
        session.answer(operation)
    history.applied(queued[0])
    predict(history, session, "e")
    assert session.requests == list("abcde")


def test_a_session_that_never_settles_is_contended() -> None:
    history, session = make(), Session()
    session.somebody()
    course = perform(history, history.name("a", 1))
    step = next(course)
    for _ in range(ROUNDS):
        session.somebody()
        step = course.send(session.answer(step))
    session.somebody()
    with pytest.raises(Contended):
        course.send(session.answer(step))


@pytest.mark.parametrize(
    ("error", "doubt"),
    [(Unreachable, True), (StoreUnavailable, True), (Overloaded, False), (Contended, False), (Behind, False)],
)
def test_only_errors_that_hide_the_fate_leave_doubt(error: type[RecurraError], doubt: bool) -> None:  # noqa: FBT001
    assert doubtful(error("")) is doubt


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("pppprq"),
            st.text(".<x", max_size=4),
            st.integers(0, 3),
            st.booleans(),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_each_answered_operation_is_applied_once_and_in_order(
    script: list[tuple[str, str, int, bool]],
    there: bool,  # noqa: FBT001
) -> None:
    """Lost requests, lost replies, late duplicates, and a store that goes back to an earlier time."""
    history, session, numbers = make(), Session(), count()
    if there:
        session.somebody()
    answered: list[object] = []
    sent: list[Operation] = []
    for kind, faults, back, again in script:
        if kind == "r" and answered and not any(one.unsure and not one.done for one in sent):
            # The store forgets some: never its first operation, as that is a session that is gone.
            del session.life[max(1, len(session.life) - back) :]
            continue
        request = f"{next(numbers)}"
        for _ in range(1 + again):
            operation = history.name(request, 10)
            sent.append(operation)
            try:
                run(history, session, operation, faults)
            except Unreachable:
                continue
            answered.append(request)
            break
        if kind == "q" and sent and (sent[-1].unsure or sent[-1].done):
            session.answer(sent[-1])  # arrives once more, late; what was refused where it arrived does not
    predict(history, session, "last")
    applied = [request for request in session.requests if request != "theirs"]
    assert len(set(applied)) == len(applied)
    assert applied[-1] == "last"
    kept = [request for request in applied if request in {*answered, "last"}]
    assert kept == [*answered, "last"]
    numbered = [int(str(request)) for request in applied[:-1]]
    assert numbered == sorted(numbered)


def test_a_history_whose_replay_fails_on_its_way_is_behind_until_one_succeeds() -> None:
    history, session = make(), Session()
    for request in "abc":
        predict(history, session, request)
    del session.life[1:]  # the store lost what followed
    course = perform(history, history.name("d", 10))
    step = next(course)
    for replayed in "bc":
        step = course.send(session.answer(step))
        assert step.request == replayed
    with pytest.raises(RunFailed):
        course.send(RunFailed("the device failed"))
    assert history.behind  # `standing` is b's: what it tells of the store is not of all that was acknowledged
    predict(history, session, "d")
    assert session.requests == ["a", "b", "c", "d"]
    assert not history.behind
