"""A session's history as one handle knows it: what was sent, what is known to be applied, what to send next.

No I/O: `History.perform` is a generator that yields what to send and is sent what came back. Its rules make an
operation apply once, whatever the network, the servers or the store do:

    history     o1 <- o2 <- o3           each operation names the one that it continues (`after`)
                            |
                          last           o4 is sent `after` o3, and again with the same id until it is answered
                                  `- p?  a pending operation was sent, but its answer never came

    the server stands at o3: o4 applies      at p: p was applied, so o4 continues p
    at o1 (the store lost some): o2, o3 and o4 are sent again, in order        elsewhere: somebody else wrote
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Final

from recurra.client.operation import Course, Create, Look, Operation, Reply
from recurra.client.standing import CreateOption, Standing
from recurra.client.window import Window
from recurra.wire.errors import (
    AlreadyApplied,
    Behind,
    Contended,
    Diverged,
    RecurraError,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionNotFound,
    StateReset,
    WrongIncarnation,
)

OVERHEAD_BYTES: Final = 256  # of an operation in the window, besides its request
ROUNDS: Final = 16  # answers that move the course of one operation before it gives up as CONTENDED


class History:
    """One handle's view of one session."""

    def __init__(self, window: Window, *, create: CreateOption, entropy: Callable[[int], bytes]) -> None:
        self.create = create
        self.last = b""  # the id of the last operation known to be applied
        self.standing: Standing | None = None
        self._window, self._entropy = window, entropy
        self._ended = False
        self._applied: deque[Operation] = deque()  # a chain up to `last`, as far back as the window reaches
        self._pending: list[Operation] = []  # sent or to be sent, without an answer yet

    def resume(self, last: bytes, standing: Standing | None, applied: list[Operation], *, ended: bool = False) -> None:
        """Take over what is known already: `applied` is a chain of operations up to `last`."""
        self.last, self.standing, self._applied, self._ended = last, standing, deque(applied), ended
        self._pending = []

    def follow(self, standing: Standing | None) -> None:
        """Continue from where the session stands, whoever brought it there; None: it is not there."""
        self.resume(standing.last_id if standing else b"", standing, [])

    @property
    def ended(self) -> bool:
        """Whether the last operation ended the session."""
        return self._ended

    @property
    def settled(self) -> bool:
        """Whether the fate of every operation is known."""
        return not self._pending

    def name(
        self, request: object, nbytes: int, *, ends: bool = False, dry: bool = False, asked: object = None
    ) -> Operation:
        """A new operation; or the pending one that asked the same and failed, since asking again is a retry of it."""
        asked = request if asked is None else asked
        for pending in self._pending:
            if pending.asked is not None and pending.asked == asked and not pending.queued and not dry:
                return pending
        operation = Operation(self._entropy(16), request, nbytes + OVERHEAD_BYTES, ends=ends, dry=dry, asked=asked)
        self._chain(operation)
        return self.adopt(operation)

    def queue(self, request: object, nbytes: int) -> Operation:
        """A new operation that continues the last one sent, answered or not. The session was opened before."""
        operation = Operation(self._entropy(16), request, nbytes + OVERHEAD_BYTES, queued=True)
        operation.after = self._pending[-1].id if self._pending else self.last
        return self.adopt(operation)

    def adopt(self, operation: Operation) -> Operation:
        """Take in an operation, named already, whose fate is to be settled."""
        if not operation.dry and operation not in self._pending:
            self._pending.append(operation)
        return operation

    def applied(self, operation: Operation, standing: Standing | None = None) -> None:
        """Note that the session took `operation`, and so those that it continues."""
        if operation.dry:
            return
        if standing is not None:
            self.standing = standing
        if operation.done:
            return  # replayed
        if operation.after != self.last:
            before = self._find_pending(operation.after)
            if before is not None:
                self.applied(before)
        # What is pending and continues something else than this can never be applied any more.
        heirs, heritage = {operation.id}, []
        for pending in self._pending:
            if pending is not operation and pending.after in heirs:
                heirs.add(pending.id)
                heritage.append(pending)
        self._pending = heritage
        self._applied.append(operation)
        while len(self._applied) > 1 and self._applied[1].request is None:
            self._applied.popleft()
        self.last, self._ended = operation.id, operation.ends
        operation.done, operation.opening = True, False
        self._keep(operation)

    def perform(self, operation: Operation) -> Course:
        """What to send, and what follows from each answer, until `operation` is answered for good.

        Yields an operation to send, or a Look; is sent the reply, or the error that the attempts to send it ended with
        (`unsure` set on the operation if it may have been applied nevertheless). Returns the reply of `operation`.
        Raises what it finally failed with: see `_turn`.
        """
        operation.sending = True
        try:
            if operation.opening and not operation.after and not operation.dry:
                yield from self._meet(operation)
            return (yield from self._course(operation))
        except RecurraError:
            if not operation.unsure and operation in self._pending:
                self._pending.remove(operation)
            raise
        finally:
            operation.sending = False
            if operation in self._pending:
                self._keep(operation)

    def _meet(self, operation: Operation) -> Generator[Look, Reply | RecurraError, None]:
        """Look where the session stands, if the operation is to continue one that is there."""
        if self.create == "must_exist" or operation.ends:
            outcome = yield Look()
            if isinstance(outcome, RecurraError):
                raise outcome
            self._open(operation, outcome.standing.last_id, Create.NEVER)

    def _course(self, operation: Operation) -> Course:
        todo, rounds = [operation], 0
        while True:
            step = todo[0]
            if step.request is None:
                raise Diverged("the session lost more operations than the window holds; use a larger window_bytes")
            outcome = yield step
            if isinstance(outcome, RecurraError) and not isinstance(outcome, AlreadyApplied):
                rounds += 1
                if rounds > ROUNDS:
                    raise _as(Contended, outcome, "others keep writing the session; safe to retry")
                todo = self._turn(operation, step, outcome)
                continue
            self.applied(step, outcome.standing if isinstance(outcome, Reply) else self._told(outcome))
            if step is not operation:
                del todo[0]
            elif isinstance(outcome, Reply):
                return outcome
            else:
                raise outcome

    def _turn(self, target: Operation, step: Operation, error: RecurraError) -> list[Operation]:
        """What to send now that `step` was refused, `target` last.

        Raises: `error` itself where no other course is known; AlreadyApplied, the session took the target and later
        operations; Diverged, WrongIncarnation or StateReset where somebody else wrote the session.
        """
        if isinstance(error, SessionNotFound | SessionExpired) and step.opening and step.after:
            if self.create == "must_exist" or step.ends:
                raise error
            step.after, step.create = b"", Create.NEW  # it went away while this was opening it
            return [target]
        stands_at = _hex(error, "last_id")
        if not isinstance(error, SessionExists | Behind | StateReset | SessionClosed) or stands_at in (b"", step.after):
            raise error  # refused where it stands, as an end of what was ended
        replay = self._since(stands_at)
        if stands_at == self.last:
            self.standing = self._told(error) or self.standing
        if replay is not None:
            if target.done:
                raise _as(AlreadyApplied, error, "the operation and later ones were applied; its reply is lost")
            self._chain(target)
            self.adopt(target)
            return [*replay, target]
        if step.opening:
            return self._reopen(step, error, stands_at)
        raise self._verdict(error)

    def _since(self, stands_at: bytes) -> list[Operation] | None:
        """The operations to replay for a session that stands at this id; None if it is not of this history."""
        pending = self._find_pending(stands_at)
        if pending is not None:
            self.applied(pending)
        if stands_at == self.last:
            return []
        replay: list[Operation] = []
        for operation in reversed(self._applied):
            if operation.id == stands_at:
                return replay[::-1]
            replay.append(operation)
            if operation.after == stands_at:
                return replay[::-1]
        return None

    def _find_pending(self, operation_id: bytes) -> Operation | None:
        return next((pending for pending in self._pending if pending.id == operation_id), None)

    def _keep(self, operation: Operation) -> None:
        if not operation.kept:
            operation.kept = True
            self._window.keep(operation)

    def _told(self, error: RecurraError) -> Standing | None:
        """Where the session stands by an error's metadata, beside what was known."""
        position = error.metadata.get("position", "")
        if self.standing is None or not position.isdecimal():
            return None
        return replace(self.standing, position=int(position))

    def _reopen(self, step: Operation, error: RecurraError, stands_at: bytes) -> list[Operation]:
        """The opening operation met a session: continue it, unless the operation may be what others built on."""
        if isinstance(error, SessionClosed) and step.ends:
            raise error
        if _hex(error, "incarnation") == step.id:
            step.unsure = False
            raise _as(AlreadyApplied, error, "the operation created the session, and others went on; its reply is lost")
        if isinstance(error, SessionExists) and self.create == "must_be_new":
            raise error
        if step.unsure and step.after:
            raise self._verdict(error)  # it may be among what brought the session there
        self._open(step, stands_at, Create.NEW if isinstance(error, SessionClosed) else Create.NEVER)
        return [step]

    def _open(self, operation: Operation, stands_at: bytes, create: Create) -> None:
        """Let the handle's first operation continue what it found."""
        pending = self._find_pending(stands_at)
        if pending is not None and pending is not operation:
            self.applied(pending)
            self.adopt(operation)
        operation.after, operation.create = stands_at, create

    def _chain(self, operation: Operation) -> None:
        """Let `operation` continue the last one."""
        operation.opening = not self.last
        operation.after = self.last
        if self.last:
            operation.create = Create.NEW if self._ended and not operation.ends else Create.NEVER
        elif operation.dry and self.create == "if_missing":
            operation.create = Create.IF_MISSING
        else:
            operation.create = Create.NEVER if self.create == "must_exist" else Create.NEW

    def _verdict(self, error: RecurraError) -> RecurraError:
        """What it means that the session stands at an operation that is not of this history."""
        if not isinstance(error, Behind):
            return error
        known, told = self.standing.incarnation if self.standing else b"", _hex(error, "incarnation")
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
