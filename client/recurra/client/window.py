"""The window: recent operations' inputs, kept so that they can be sent again, bounded in bytes for a whole client."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Kept(Protocol):
    """Something in the window: one operation, or the operations of a frame."""

    @property
    def nbytes(self) -> int: ...

    def forget(self) -> None:
        """Let go of the inputs; the names stay."""


class Window:
    """What a client keeps of its operations. The oldest is forgotten first, whichever session it belongs to.

    Attributes:
        limit: bytes.
        ever: bytes kept so far, those that were forgotten since included. What was kept when it was less than this by
            the limit is forgotten.

    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.ever = 0
        self._kept: deque[Kept] = deque()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes kept now, at most the limit."""
        return self._bytes

    def keep(self, entry: Kept) -> None:
        """Keep `entry` until newer ones take its place. One larger than the whole window is forgotten at once."""
        self._kept.append(entry)
        self._bytes += entry.nbytes
        self.ever += entry.nbytes
        while self._bytes > self.limit:
            oldest = self._kept.popleft()
            self._bytes -= oldest.nbytes
            oldest.forget()
