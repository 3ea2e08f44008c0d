"""Which sessions a stream knows, each at a row; the one that was not used longest gives its row to a new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

import numpy as np

from recurra.client.crew import Crew, Rows
from recurra.wire.errors import Overloaded

IDLE_SECONDS: Final = 30.0  # without an operation; then the server need not hold the session for this stream


class Roster:
    """The rows of a crew that may grow up to the limit of handles, and when each was used."""

    def __init__(self, crew: Crew, names: list[str], busy: Callable[[str], bool], room: int) -> None:
        """`names`: the crew's, which has `room` rows. `busy`: whether a session may not give its row."""
        self._crew, self._names, self._busy, self._room = crew, names, busy, room
        self._rows: dict[str, int] = {}  # the one that was not used longest comes first
        self._used = np.zeros(room)

    def row(self, session: str) -> int | None:
        """The session's row, if it has one."""
        return self._rows.get(session)

    def admit(self, sessions: Sequence[str], now: float) -> Rows:
        """The rows of sessions that are about to be sent. Raises Overloaded where no session can give its row."""
        rows = np.empty(len(sessions), np.int64)
        for place, session in enumerate(sessions):
            row = self._rows.pop(session, None)
            if row is None:
                if len(self._names) < self._room:
                    row = len(self._names)
                    self._names.append(session)
                else:
                    row = self._take()
                    self._names[row] = session
            self._rows[session] = row
            rows[place] = row
        self._used[rows] = now
        return rows

    def idle(self, rows: Rows) -> Rows:
        """Those of some rows whose sessions have nothing on their way, and nothing of which the fate is not known."""
        settled = rows[~self._crew.apart[rows]]
        return np.array([row for row in settled.tolist() if not self._busy(self._names[row])], np.int64)

    def oldest(self, count: int) -> Rows:
        """Some rows that were not used for the longest time."""
        rows = (row for session, row in self._rows.items() if not self._busy(session))
        return np.fromiter(islice(rows, count), np.int64)

    def unused(self, now: float) -> Rows:
        """The rows that were not used for some time."""
        return self.idle(np.flatnonzero(self._used[: len(self._names)] < now - IDLE_SECONDS))

    def _take(self) -> int:
        for session, row in self._rows.items():
            if not self._busy(session) and not self._crew.apart[row] and self._crew.exposure.covered(row):
                del self._rows[session]
                self._crew.leave(row)
                self._crew.frames.leave(np.array([row]))
                return row
        raise Overloaded(f"{self._room} sessions of this stream have operations that are not answered, or not durable")
