"""Operations in line, session by session: one of each on its way, the others behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field

from recurra.client.packing import Answer, Asked


@dataclass(slots=True)
class _Line:
    """One session's. `lost`: what came of `head` when nobody waited for it any more."""

    head: Asked
    behind: deque[Asked] = field(default_factory=deque)
    lost: Answer | None = None


class Lines:
    """Gives out each session's operations in order, the next when the last is answered.

    A caller that was cancelled, or whose time ran out, leaves its operation on its way; asking the same again is a
    retry, and gets the answer of it.

    Attributes:
        count: operations taken and not answered.
        nbytes: what their inputs take.

    """

    def __init__(self, ready: Callable[[Asked], None]) -> None:
        """`ready` is called with an operation that may be sent."""
        self.count, self.nbytes = 0, 0
        self._ready = ready
        self._lines: dict[str, _Line] = {}

    def __contains__(self, session: str) -> bool:
        """Whether an operation of the session is ready or on its way."""
        line = self._lines.get(session)
        return line is not None and line.lost is None

    def put(self, asked: Asked) -> None:
        """Take an operation in."""
        self.count += 1
        self.nbytes += asked.chunk.nbytes
        line = self._lines.get(asked.session)
        idle = line is None or line.lost is not None
        if line is None:
            line = self._lines[asked.session] = _Line(asked)
        line.behind.append(asked)
        if idle:
            self._next(line)

    def answer(self, head: Asked, answer: Answer) -> None:
        """Tell what came of a session's operation; the next one is ready."""
        line = self._lines[head.session]
        if not head.told(answer) and not isinstance(answer, Exception):
            line.lost = answer
        self._left(head)
        self._next(line)

    def give_back(self, asked: Asked, answer: Answer) -> None:
        """Take back an answer that its caller has not seen, unless the session went on already."""
        self._lines.setdefault(asked.session, _Line(asked, lost=answer))

    def drop(self, head: Asked) -> None:
        """Pass over a session's operation, which is not sent."""
        self._left(head)
        self._next(self._lines[head.session])

    def give_up(self, error: Exception) -> None:
        """Answer all with one error."""
        lines, self._lines, self.count, self.nbytes = self._lines, {}, 0, 0
        for line in lines.values():
            for asked in [*([line.head] if line.lost is None else []), *line.behind]:
                asked.told(copy(error))

    def forget(self, session: str) -> None:
        """Forget an answer that nobody waited for."""
        if session not in self:
            self._lines.pop(session, None)

    def _left(self, asked: Asked) -> None:
        self.count -= 1
        self.nbytes -= asked.chunk.nbytes

    def _next(self, line: _Line) -> None:
        while line.behind:
            asked = line.behind.popleft()
            error = asked.unless.get(asked.session)
            if error is not None:
                asked.told(error)
            elif line.lost is not None and asked.chunk == line.head.chunk:
                if asked.told(line.lost):
                    line.lost = None
            elif asked.answer is not None:
                line.head, line.lost = asked, None
                self._ready(asked)
                return
            self._left(asked)
        if line.lost is None:
            del self._lines[line.head.session]
