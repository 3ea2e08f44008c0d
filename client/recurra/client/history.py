"""A session's history as one handle knows it: which operations were sent, which are known to be applied.

history     o1 <- o2 <- o3           each operation names the one that it continues (`after`)
                        |
                      last           what the next operation continues
                            `- p?    a pending operation was sent, but its answer never came
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from typing import Final

from recurra.client.operation import Create, Operation
from recurra.client.standing import CreateOption, Standing
from recurra.client.window import Window
from recurra.wire.errors import RecurraError

Earlier = Callable[[], Iterable[Operation]]
OVERHEAD_BYTES: Final = 256  # of an operation in the window, besides its request


class History:
    """One handle's view of one session."""

    def __init__(self, window: Window, *, create: CreateOption, entropy: Callable[[int], bytes]) -> None:
        self.create = create
        self.last = b""  # the id of the last operation known to be applied
        self.standing: Standing | None = None
        self.behind = False  # the session lost some, and is not at `last` again: `standing` is of an earlier one
        self._window, self._entropy = window, entropy
        self._ended = False
        self._applied: deque[Operation] = deque()  # a chain up to `last`, as far back as the window reaches
        self._earlier: Earlier = tuple  # what comes before it
        self._pending: list[Operation] = []  # sent or to be sent, without an answer yet

    def resume(self, last: bytes, standing: Standing | None, earlier: Earlier = tuple, *, ended: bool = False) -> None:
        """Take over what is known already: `earlier` gives the operations up to `last`, the newest first."""
        self.last, self.standing, self._earlier, self._ended = last, standing, earlier, ended
        self._applied, self._pending, self.behind = deque(), [], False

    def follow(self, standing: Standing | None) -> None:
        """Continue from where the session stands, whoever brought it there; None: it is not there."""
        self.resume(standing.last_id if standing else b"", standing)

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
        self.chain(operation)
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
        if operation.done:  # replayed
            self.behind = operation.id != self.last
            return
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
        self.last, self._ended, self.behind = operation.id, operation.ends, False
        operation.done, operation.opening = True, False
        self._keep(operation)

    def refused(self, operation: Operation) -> None:
        """Note that performing `operation` failed; it is forgotten, unless it may be applied nevertheless."""
        if operation in self._pending:
            if operation.unsure:
                self._keep(operation)
            else:
                self._pending.remove(operation)

    def since(self, stands_at: bytes) -> list[Operation] | None:
        """The operations to replay for a session that stands at this id; None if it is not of this history."""
        pending = self._find_pending(stands_at)
        if pending is not None:
            self.applied(pending)
        if stands_at == self.last:
            return []
        replay: list[Operation] = []
        for operation in chain(reversed(self._applied), self._earlier()):
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

    def told(self, error: RecurraError) -> Standing | None:
        """Where the session stands by an error's metadata, beside what was known."""
        position = error.metadata.get("position", "")
        if self.standing is None or not position.isdecimal():
            return None
        return replace(self.standing, position=int(position))

    def open(self, operation: Operation, stands_at: bytes, create: Create) -> None:
        """Let the handle's first operation continue what it found."""
        pending = self._find_pending(stands_at)
        if pending is not None and pending is not operation:
            self.applied(pending)
            self.adopt(operation)
        operation.after, operation.create = stands_at, create

    def chain(self, operation: Operation) -> None:
        """Let `operation` continue the last one."""
        operation.opening = not self.last
        operation.after = self.last
        if self.last:
            operation.create = Create.NEW if self._ended and not operation.ends else Create.NEVER
        elif operation.dry and self.create == "if_missing":
            operation.create = Create.IF_MISSING
        else:
            operation.create = Create.NEVER if self.create == "must_exist" else Create.NEW
