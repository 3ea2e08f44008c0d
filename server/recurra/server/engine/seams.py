"""What the engine needs of the world, as Protocols: under test the world is simulated, nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from recurra.wire.errors import RecurraError

Array = NDArray[Any]


class Clock(Protocol):
    """Time."""

    def monotonic(self) -> float:
        """Seconds from some start, never backwards: for deadlines."""

    def time(self) -> float:
        """Seconds since the epoch: for what is told and stored."""


class Store(Protocol):
    """Records by key; see store.sessions.RedisStore for shapes, replies and errors."""

    def commit(
        self, keys: Array, expected: Array, records: Array, ttl_ms: Array, *, replicated: bool = False
    ) -> Awaitable[list[int | bytes | RecurraError]]:
        """Sent, in order with other commits and reads, before this returns."""

    async def read(self, keys: Array) -> list[bytes | RecurraError | None]: ...

    async def scan(self, prefix: bytes, cursor: int, count: int) -> tuple[int, list[tuple[bytes, bytes]]]: ...


class States(Protocol):
    """The states of a batch of N sessions, wherever their runner has them. They never change.

    What was gathered is there until something else becomes current at its slots; what a run gave, while it is held.
    """

    def only(self, rows: NDArray[np.bool_]) -> Self:
        """Those of some rows, (N,) bool."""

    def finite(self) -> NDArray[np.bool_]:
        """(N,) bool: whose hold neither a NaN nor an infinity, which would stay in them for ever."""

    def fetch(self) -> asyncio.Future[Any] | None:
        """Come to the host, meanwhile: done once they are there, readable, too, when something else is current at their
        slots. None: they are.
        """

    def tensors(self) -> list[Array]:
        """Once they are there: in the signature's order, (N, *shape)."""

    def to_bytes(self) -> NDArray[np.uint8]:
        """Once they are there: (N, state_bytes), as records keep them."""


class Given(NamedTuple):
    """What operations bring in place of their session's own state.

    Attributes:
        state: index in the signature.
        rows: of the batch.
        values: (rows, *shape), or (1, *shape) for all of them.
    """

    state: int
    rows: slice
    values: Array


class Step(NamedTuple):
    """What one run of a batch of N sessions gave: outputs in the signature's order, (N, T, ...) or (N, ...)."""

    outputs: list[Array]
    states: States


class Runner(Protocol):
    """The model, and the states of all slots; slot 0 always holds the fresh one. `States` are its own alone."""

    def gather(self, slots: Array, given: Sequence[Given] = ()) -> States:
        """The current states of `slots` (N,), but for what is `given`."""

    def scatter(self, slots: Array, states: States) -> None:
        """Make `states` current at `slots`; what was current there is gone."""

    def load(self, slots: Array, rows: NDArray[np.uint8]) -> None:
        """Make the states of (N, state_bytes), as records keep them, current at `slots`."""

    def run(
        self,
        inputs: Sequence[Array],
        states: States,
        lengths: Array | None = None,
        *,
        fetch: bool = True,
        alone: bool = False,
    ) -> asyncio.Future[Step]:
        """Run one chunk on the device: begun, or done, when this returns. What the model raises comes through.

        The new states are current nowhere yet: the old ones stay what they are.

        Args:
            lengths: (N,) timesteps of each row, the rest is padding; None: all have the chunk's.
            fetch: the new states will be wanted on the host: they are on their way when this is done.
            alone: nobody else waits: the event loop may be held for a short run.
        """

    def start(self, inputs: Sequence[Array]) -> asyncio.Future[dict[int, Array]]:
        """Run the start graph on the device, as `run`; see recurra.models.start."""
