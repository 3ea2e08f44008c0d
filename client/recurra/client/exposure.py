"""What was acknowledged and the store does not hold yet: the window must keep its inputs until it does."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from recurra.client.window import Window

Rows = NDArray[np.int64]

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
        """Whether the window has taken half of what it holds since one of the rows was durable: then commit it."""
        return bool((self._since[rows] < self._window.ever - self._window.limit // 2).any())

    def longest(self) -> Rows:
        """The rows whose inputs are about to be forgotten. Asked often, it looks now and then."""
        if self._window.ever - self._looked < self._window.limit // 8:
            return np.zeros(0, np.int64)
        self._looked = self._window.ever
        return np.flatnonzero(self._since < self._window.ever - 5 * (self._window.limit // 8))

    def covered(self, row: int) -> bool:
        """Whether the store holds all of a row."""
        return bool(self._since[row] == _COVERED)

    def any(self, rows: Rows | None = None) -> Rows:
        """The rows, or those of some, of which the store does not hold all."""
        exposed = np.flatnonzero(self._since < _COVERED)
        return exposed if rows is None else np.intersect1d(exposed, rows)
