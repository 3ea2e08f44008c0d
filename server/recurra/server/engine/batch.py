"""A batch: rows of several blocks side by side, as one set of columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine.digest import digests
from recurra.server.engine.operation import Block, Create
from recurra.server.engine.scheduler import Part
from recurra.server.engine.seams import Given

Array = NDArray[Any]


class Batch:
    """The columns of N operations of one key; see Block for them.

    Attributes:
        head: a block that stands for all of them in what the key covers.
        sequences, creates, told_expire_ms, ttl_ms: (N,) the blocks' own, or (1,) where there is one block.
        anew: who begins the session anew, likewise.
        lengths: (N,) timesteps of each row, where they differ and the inputs are padded; None where all have head's.
        epochs: (N,) the slots' when the rows were admitted: a slot that was given up since has another.
    """

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self.head: Block = parts[0].block
        timesteps, counts = [block.timesteps for block, _ in parts], [len(rows) for _, rows in parts]
        self.lengths: NDArray[np.int64] | None = np.repeat(timesteps, counts) if len(set(timesteps)) > 1 else None
        self._whole = all(len(rows) == len(block.slots) for block, rows in parts)
        self.slots: NDArray[np.intp] = self._join(lambda block: block.slots)
        self.epochs: NDArray[np.int64] = np.zeros(len(self.slots), np.int64)
        self.ids: NDArray[np.uint64] = self._join(lambda block: block.ids)
        self.afters: NDArray[np.uint64] = self._join(lambda block: block.afters)
        self.inputs: list[Array] = [self._join(_input(at)) for at in range(len(self.head.inputs))]
        scalars = np.array([(b.sequence, b.create, b.told_expire_ms, b.ttl_ms) for b, _ in parts], np.int64).T
        self._salts = np.array([block.salt for block, _ in parts], np.uint64)
        if len(parts) > 1:
            scalars, self._salts = scalars.repeat(counts, 1), self._salts.repeat(counts)
        self.sequences, self.creates, self.told_expire_ms, self.ttl_ms = scalars
        self.anew: NDArray[np.bool_] = self.creates == Create.ANEW

    def __len__(self) -> int:
        return len(self.slots)

    def digests(self) -> NDArray[np.uint64]:
        """(N, 2) uint64, of each operation's input and options."""
        assert self.lengths is None
        return digests(self.inputs, self._salts)

    def given(self) -> tuple[list[Given], NDArray[np.bool_]]:
        """The states that operations bring, and (N,) bool, who does."""
        found, rebased, at = [], np.zeros(len(self), bool), 0
        for block, rows in self.parts:
            here = slice(at, at + len(rows))
            at += len(rows)
            if block.given:
                rebased[here] = True
                found += [Given(i, here, v if len(v) == 1 else v[rows]) for i, v in block.given.items()]
        return found, rebased

    def only(self, keep: NDArray[np.bool_]) -> Batch:
        """The batch of the rows that `keep`, (N,) bool."""
        parts, at = [], 0
        for block, rows in self.parts:
            kept = rows[keep[at : at + len(rows)]]
            at += len(rows)
            if len(kept):
                parts.append(Part(block, kept))
        batch = Batch(parts)
        batch.epochs = self.epochs[keep]
        return batch

    def each(self) -> list[tuple[int, Block, int]]:
        """(place in the batch, block, row) of every operation: for where columns end, not for the hot path."""
        return [(at, block, row) for at, (block, row) in enumerate((b, int(r)) for b, rows in self.parts for r in rows)]

    def _join(self, column: Callable[[Block], Array]) -> Array:
        if self._whole:
            columns = [column(block) for block, _ in self.parts]
        else:
            columns = [column(block)[rows] for block, rows in self.parts]
        if len(columns) == 1:
            return columns[0]
        return np.concatenate(columns if self.lengths is None else _padded(columns))


def _input(at: int) -> Callable[[Block], Array]:
    return lambda block: block.inputs[at]


def _padded(columns: list[Array]) -> list[Array]:
    """The columns (N, T, ...), with zeros up to the longest T; others as they are."""
    longest = max(column.shape[1] if column.ndim > 1 else 0 for column in columns)
    return [
        np.pad(column, [(0, 0), (0, longest - column.shape[1]), *[(0, 0)] * (column.ndim - 2)])
        if column.ndim > 1 and column.shape[1] < longest
        else column
        for column in columns
    ]
