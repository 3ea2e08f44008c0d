"""New records on their way to the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine.batch import Batch
from recurra.server.engine.seams import States
from recurra.wire.errors import RecurraError

Array = NDArray[Any]


@dataclass(eq=False, slots=True, kw_only=True)
class Flight:
    """New records on their way, until the store has answered.

    Attributes:
        slots, epochs: (N,), whose.
        bases: (N,), the slots' when this began.
        expected, headers: (N,) HEADER, where the sessions stood before and stand after.
        parcel: what is to be sent yet; None once it is, and for what only waits behind others.
        answer: the store's; None where nothing is asked of it, or what was to be sent could not be.
        commits: whether it writes records, or only waits behind others that do.
        rests: (N,) bool, on what was sent; what the others would have rested on has failed, and so do they.
        mine: (N,) bool, which of them this replica owns once this is applied.
        batch: the operations that wait for it; None at a checkpoint.
        outputs, states: (N, ...), what their clients get.
        refusal: what they get instead, of an operation that was applied before.
    """

    slots: Array
    epochs: Array
    bases: Array
    expected: Array
    headers: Array
    started: float
    rests: NDArray[np.bool_]
    parcel: Parcel | None = None
    answer: Awaitable[list[Any]] | None = None
    commits: bool = False
    mine: NDArray[np.bool_] | None = None
    batch: Batch | None = None
    outputs: list[Array] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)
    refusal: RecurraError | None = None
    landed: bool = False


class Parcel(NamedTuple):
    """What is to be sent to the store; the slots may be others' by then.

    Attributes:
        keys, ttl_ms: (N, ...), see Store.commit.
        new: the sessions' states; None where none are sent.
        records: makes the records out of (N, state_bytes) uint8; None: what the store has is written again.
    """

    keys: Array
    ttl_ms: Array
    new: States | None = None
    records: Callable[[Array], Array] | None = None

    @property
    def coming(self) -> asyncio.Future[Any] | None:
        """Done once the states are on the host; None: they are."""
        return self.new.fetch() if self.new else None
