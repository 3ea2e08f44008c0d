"""What the engine needs of the world, as Protocols: under test the world is simulated, nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, Protocol

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


class Step(NamedTuple):
    """What one run of a batch of N sessions gave.

    Attributes:
        outputs: in the signature's order, (N, T, ...) or (N, ...).
        states: in the signature's order, in the graph's layout, batch axis N.
    """

    outputs: list[Array]
    states: list[Array]


class Runner(Protocol):
    """The model and its state slabs. A slot is a row of them; slot 0 always holds the fresh state."""

    def gather(self, slots: Array) -> list[Array]:
        """The states at `slots` (N,), in the graph's layout; not to be written to."""

    def scatter(self, slots: Array, states: Sequence[Array]) -> None:
        """Make `states`, in the graph's layout, current at `slots`."""

    def run(
        self, inputs: Sequence[Array], states: Sequence[Array], lengths: Array | None = None, *, alone: bool = False
    ) -> asyncio.Future[Step]:
        """Run one chunk on the device: begun, or done, when this returns. What the model raises comes through.

        Args:
            lengths: (N,) timesteps of each row, the rest is padding; None: all have the chunk's.
            alone: nobody else waits: the event loop may be held for a short run.
        """

    def start(self, inputs: Sequence[Array]) -> asyncio.Future[dict[int, Array]]:
        """Run the start graph on the device, as `run`; see recurra.models.start."""

    def to_bytes(self, states: Sequence[Array]) -> NDArray[Any]:
        """States in the graph's layout as (N, state_bytes) uint8."""

    def from_bytes(self, rows: NDArray[Any]) -> list[Array]:
        """The other way round."""
