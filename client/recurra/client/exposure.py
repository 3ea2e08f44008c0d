"""What was acknowledged and the store does not hold yet: the window must keep its inputs until it does."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from recurra.client.window import Window

Rows = NDArray[np.int64]

HALF: Final = 0.5
LATE: Final = 0.875  # of the window: beyond, it might forget what is needed
_COVERED: Final = np.iinfo(np.int64).max


class Exposure:
    """Since when each of k rows has had anything that the store does not hold, in bytes that the window took since."""

    def __init__(self, window: Window, k: int) -> None:
        self._window = window
        self._since = np.full(k, _COVERED)
        self._looked = 0

    def told(self, rows: Rows, *, durable: NDArray[np.bool_]) -> None:
        """Note of some rows whether the store holds all of them. `durable`: (n,)."""
        self._since[rows] = np.where(durable, _COVERED, np.minimum(self._since[rows], self._window.ever))

    def long(self, rows: Rows) -> bool:
        """Whether one of the rows has been exposed for half of the window: their next operations are committed."""
        return bool((self._since[rows] < self._before(HALF)).any())

    def due(self) -> bool:
        """Whether it is time to look who has been exposed for long: after each sixteenth of the window."""
        if self._window.ever - self._looked < self._window.limit // 16:
            return False
        self._looked = self._window.ever
        return True

    def older(self, share: float) -> Rows:
        """The rows that have been exposed for such a share of the window, the oldest first."""
        rows = np.flatnonzero(self._since < self._before(share))
        return rows[np.argsort(self._since[rows], kind="stable")]

    def any(self, rows: Rows | None = None) -> Rows:
        """The rows, or those of some, of which the store does not hold all."""
        exposed = np.flatnonzero(self._since < _COVERED)
        return exposed if rows is None else np.intersect1d(exposed, rows)

    def covered(self, row: int) -> bool:
        """Whether the store holds all of a row."""
        return bool(self._since[row] == _COVERED)

    def _before(self, share: float) -> int:
        return self._window.ever - int(share * self._window.limit)
