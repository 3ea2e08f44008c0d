"""When the chunks that wait go out as a frame.

Low latency for one caller and large frames for many want the same: to wait for those who are likely to come, and for
nobody else. Callers that were answered a moment ago are likely to come again, so a frame goes out

- when all of them have come, and no more rows are on their way than wait here: those come back later, together;
- when the first chunk has waited for the linger; or when the frame is full.
"""

from __future__ import annotations

import math


class Linger:
    """How long to wait. It counts chunks, and looks at no clock: `now` is in seconds.

    Attributes:
        ready: chunks that wait.
        flying: rows of the frames on their way.

    """

    def __init__(self, seconds: float) -> None:
        self.ready, self.flying = 0, 0
        self._seconds = seconds
        self._away, self._until = 0, -math.inf  # how many were answered and may come again, until when
        self._first = 0.0  # when the first of those that wait came

    def came(self, now: float) -> None:
        """A chunk waits."""
        if not self.ready:
            self._first = now
        self.ready += 1
        if self._away:
            self._away -= 1

    def went(self, waited: int, sent: int) -> None:
        """All that waited went, but for some that nobody wanted. Who has not come by now is not waited for."""
        self.ready -= waited
        self.flying += sent
        self._away = 0

    def answered(self, now: float) -> None:
        """A row is answered; its caller may come again."""
        self.flying -= 1
        self._away += 1
        self._until = now + self._seconds

    def left(self, now: float) -> float:
        """Seconds until the frame goes out, if nobody comes."""
        nobody = not self._away or now >= self._until
        if nobody and self.ready >= self.flying:
            return 0.0
        return max(0.0, self._first + self._seconds - now)
