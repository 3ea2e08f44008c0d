"""The course of one operation: what to send, and what follows from each answer, until it is answered for good.

No I/O: a generator yields what to send and is sent what came back. Its rules make an operation apply once, whatever
the network, the servers or the store do. It is sent `after` the history's last, again with the same id until answered:

    the session stands at last: it applies           at a pending operation: that was applied, so this continues it
    earlier in the history (the store lost some): what follows there is replayed, in order
    elsewhere: somebody else wrote
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from recurra.client.history import History
from recurra.client.operation import Create, Look, Operation, Reply, Step
from recurra.wire.errors import (
    AlreadyApplied,
    Behind,
    Contended,
    Diverged,
    Mismatch,
    RecurraError,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionNotFound,
    StateReset,
    WrongIncarnation,
)

ROUNDS: Final = 16  # answers that move the course of one operation before it gives up as CONTENDED

Course = Generator[Step, Reply | RecurraError, Reply]


def perform(history: History, operation: Operation) -> Course:
    """Perform an operation that `history` named.

    Yields an operation to send, or a Look; is sent the reply, or the error that the attempts to send it ended with
    (`unsure` set on the operation if it may have been applied nevertheless). Returns the reply of `operation`.
    Raises what it finally failed with: see `_turn`.
    """
    operation.sending = True
    try:
        if operation.opening and not operation.after and not operation.dry:
            yield from _meet(history, operation)
        return (yield from _course(history, operation))
    finally:
        operation.sending = False
        if not operation.done:
            history.refused(operation)
        elif operation.forgotten:
            operation.forget()


def restore(history: History) -> Course:
    """Have the store hold all of `history`, and replay what was lost. Returns where the session stands.

    For a session that no other operation is performed on. A server that is asked where a session stands writes what it
    has not written yet. Raises: as `perform`.
    """
    for _ in range(ROUNDS):
        outcome = yield Look()
        if isinstance(outcome, RecurraError):
            raise outcome
        if outcome.standing.last_id == history.last:
            history.standing = outcome.standing
            return outcome
        replay = history.since(outcome.standing.last_id)
        if replay is None:
            raise Diverged("somebody else wrote the session since; follow() continues from where it stands")
        for step in replay:
            _check(step)
            done = yield step
            if isinstance(done, Mismatch) and not isinstance(done, Diverged):
                break  # it stands elsewhere by now
            if isinstance(done, RecurraError) and not isinstance(done, AlreadyApplied):
                raise done
    raise Contended("the session was lost again and again; safe to retry")


def _meet(history: History, operation: Operation) -> Generator[Look, Reply | RecurraError, None]:
    """Look where the session stands, if the operation is to continue one that is there."""
    if history.create == "must_exist" or operation.ends:
        outcome = yield Look()
        if isinstance(outcome, RecurraError):
            raise outcome
        history.open(operation, outcome.standing.last_id, Create.NEVER)


def _course(history: History, operation: Operation) -> Course:
    todo, rounds = [operation], 0
    while True:
        step = todo[0]
        _check(step)
        outcome = yield step
        if isinstance(outcome, RecurraError) and not isinstance(outcome, AlreadyApplied):
            rounds += 1
            if rounds > ROUNDS:
                raise _as(Contended, outcome, "others keep writing the session; safe to retry")
            todo = _turn(history, operation, step, outcome)
            continue
        history.applied(step, outcome.standing if isinstance(outcome, Reply) else history.told(outcome))
        if step is not operation:
            del todo[0]
        elif isinstance(outcome, Reply):
            return outcome
        else:
            raise outcome


def _check(step: Operation) -> None:
    if step.request is None:
        raise Diverged("the session lost more operations than the window holds; use a larger window_bytes")


def _turn(history: History, target: Operation, step: Operation, error: RecurraError) -> list[Operation]:
    """What to send now that `step` was refused, `target` last.

    Raises: `error` itself where no other course is known; AlreadyApplied, the session took the target and later
    operations; Diverged, WrongIncarnation or StateReset where somebody else wrote the session.
    """
    if isinstance(error, SessionNotFound | SessionExpired) and step.opening and step.after:
        if history.create == "must_exist" or step.ends:
            raise error
        step.after, step.create = b"", Create.NEW  # it went away while this was opening it
        return [target]
    stands_at = _hex(error, "last_id")
    if not isinstance(error, SessionExists | Behind | StateReset | SessionClosed) or stands_at in (b"", step.after):
        raise error  # refused where it stands, as an end of what was ended
    replay = history.since(stands_at)
    if stands_at == history.last:
        history.standing = history.told(error) or history.standing
    if replay is not None:
        if target.done:
            raise _as(AlreadyApplied, error, "the operation and later ones were applied; its reply is lost")
        history.chain(target)
        history.adopt(target)
        history.behind = bool(replay)
        return [*replay, target]
    if step.opening:
        return _reopen(history, step, error, stands_at)
    raise _verdict(history, error)


def _reopen(history: History, step: Operation, error: RecurraError, stands_at: bytes) -> list[Operation]:
    """The opening operation met a session: continue it, unless the operation may be what others built on."""
    if isinstance(error, SessionClosed) and step.ends:
        raise error
    if _hex(error, "incarnation") == step.id:
        step.unsure = False
        raise _as(AlreadyApplied, error, "the operation created the session, and others went on; its reply is lost")
    if isinstance(error, SessionExists) and history.create == "must_be_new":
        raise error
    if step.unsure and step.after:
        raise _verdict(history, error)  # it may be among what brought the session there
    history.open(step, stands_at, Create.NEW if isinstance(error, SessionClosed) else Create.NEVER)
    return [step]


def _verdict(history: History, error: RecurraError) -> RecurraError:
    """What it means that the session stands at an operation that is not of this history."""
    if not isinstance(error, Behind):
        return error
    known, told = history.standing.incarnation if history.standing else b"", _hex(error, "incarnation")
    if known and told and known != told:
        return _as(
            WrongIncarnation, error, "the session was ended and created again since; follow() continues the new one"
        )
    return _as(Diverged, error, "somebody else wrote the session since; follow() continues from where it stands")


def _as(cls: type[RecurraError], error: RecurraError, message: str) -> RecurraError:
    """`error` told as another, with its metadata."""
    told = cls(message)
    told.metadata = error.metadata
    told.__cause__ = error
    return told


def _hex(error: RecurraError, name: str) -> bytes:
    try:
        return bytes.fromhex(error.metadata.get(name, ""))
    except ValueError:
        return b""
