"""Rows of different lengths in one batch: a mask packed to the front, and outputs spread out again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recurra.client.arrays import Array
from recurra.wire.errors import InvalidArgument


@dataclass(frozen=True)
class Ragged:
    """Which timesteps of a batch of k rows count.

    Attributes:
        lengths: (k,) uint32, how many count.
        packing: (k, T), which timestep to put where, so that those that count come first; None: they do already.
        reading: (k, T), which packed timestep's output each timestep shows: its own, or the latest that counts
            before it; -1: none, zeros.

    """

    lengths: NDArray[np.uint32]
    packing: NDArray[np.int64] | None
    reading: NDArray[np.int64]

    def pack(self, column: Array) -> Array:
        """(k, T, ...) with the timesteps that count in front, padding behind."""
        if self.packing is None:
            return column
        return column[np.arange(len(column))[:, None], self.packing]

    def spread(self, column: Array) -> Array:
        """(k, T, ...) of outputs as packed, to where their timesteps were; masked ones repeat the last, or zeros."""
        spread = column[np.arange(len(column))[:, None], np.maximum(self.reading, 0)]
        spread[self.reading < 0] = 0
        return spread


def from_mask(mask: ArrayLike, rows: int, timesteps: int) -> Ragged | None:
    """(k, T) booleans, True: counts. None where all do. Raises InvalidArgument for another shape."""
    counts = np.asarray(mask)
    if counts.shape != (rows, timesteps):
        raise InvalidArgument(f"the mask has shape {counts.shape}; it must be {(rows, timesteps)}")
    counts = counts.astype(bool)
    if counts.all():
        return None
    lengths = counts.sum(1)
    trailing = bool((counts == (np.arange(timesteps) < lengths[:, None])).all())
    packing = None if trailing else np.argsort(~counts, axis=1, kind="stable")
    return Ragged(lengths.astype("<u4"), packing, np.cumsum(counts, axis=1) - 1)


def from_lengths(lengths: ArrayLike, rows: int, timesteps: int) -> Ragged | None:
    """(k,) integers from 0 to T. None where all are T. Raises InvalidArgument for others."""
    given = np.asarray(lengths)
    if given.shape != (rows,) or given.dtype.kind not in "iu" or ((given < 0) | (given > timesteps)).any():
        raise InvalidArgument(f"lengths must be {rows} integers from 0 to {timesteps}")
    return from_mask(np.arange(timesteps) < given[:, None], rows, timesteps)
