"""Which replica may acknowledge a session's operations before the store has them. Pure.

A record names its owner. Nobody's right to write depends on it, since every write is a compare-and-set; it tells others
that the session may be further than its record. A stream of theirs takes over all the same, and the owner learns it at
its next checkpoint.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine.batch import Batch

Array = NDArray[Any]

_LEASE_INTERVALS: Final = 10  # after so many without a checkpoint an owner is believed dead
_LEAST_TTL_INTERVALS: Final = 4  # a session that lives no longer is committed at once


class Ownership:
    """This replica's claims.

    Attributes:
        seconds: the longest that an acknowledged operation is kept from the store.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._milliseconds = int(seconds * 1000)
        self._id = np.frombuffer(os.urandom(16), "<u8")

    def ours(self, heads: Array) -> NDArray[np.bool_]:
        """(N,) bool: which sessions, at `heads` (N,) HEADER, are this replica's."""
        ours: NDArray[np.bool_] = (heads["owner"] == self._id).all(1)
        return ours

    def others(self, heads: Array, now_ms: int) -> NDArray[np.bool_]:
        """(N,) bool: which sessions, at `heads` (N,) HEADER, a stream on another replica owns.

        A mark whose writer's clock is ahead of this one's by more than the mark lasts is not believed: it would last
        until this clock is there too, were that in days.
        """
        owned: NDArray[np.bool_] = heads["owned_until_ms"] > now_ms
        if not owned.any():
            return owned
        until, update = heads["owned_until_ms"].astype(np.int64), heads["update_ms"].astype(np.int64)
        return owned & (update - now_ms <= until - update) & ~self.ours(heads)

    def claims(self, batch: Batch, heads: Array, now_ms: int) -> NDArray[np.bool_]:
        """(N,) bool: which sessions, at `heads` before the batch, it makes this replica's.

        Not one that is used now and then: it would be claimed and released with every operation.
        """
        if not batch.head.checkpointed:
            return np.zeros(len(batch), bool)
        lasting: NDArray[np.bool_] = batch.ttl_ms >= _LEAST_TTL_INTERVALS * self._milliseconds
        return lasting & ~self.idle(heads, now_ms)

    def idle(self, heads: Array, now_ms: int) -> NDArray[np.bool_]:
        """(N,) bool: which had no operation for an interval, or one at a time that the clock has not reached again."""
        since: Array = now_ms - heads["update_ms"].astype(np.int64)
        quiet: NDArray[np.bool_] = np.abs(since) > self._milliseconds
        return quiet

    def mark(self, heads: Array, mine: NDArray[np.bool_], now_ms: int) -> None:
        """Write into new `heads` whose they are: this replica's, or nobody's."""
        heads["owner"] = self._id * mine[:, None]
        heads["owned_until_ms"] = (now_ms + _LEASE_INTERVALS * self._milliseconds) * mine
