"""How long one call is tried, and how long it waits between attempts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from recurra.wire.errors import DeadlineExceeded, RecurraError

_FIRST_SECONDS: Final = 0.05
_LONGEST_SECONDS: Final = 2.0


class Clock(Protocol):
    """The time, as the SDK sees it."""

    def now(self) -> float:
        """Seconds, never going back."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class WallClock:
    """The real time."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(frozen=True)
class Chance:
    """Where time and random bytes come from; a simulation brings its own."""

    clock: Clock
    entropy: Callable[[int], bytes] = os.urandom


class Patience:
    """One call's time and backoff: exponential with full jitter, on top of what the server asks for."""

    def __init__(self, chance: Chance, timeout: float, *, spare: int = 0) -> None:
        """`timeout`: seconds for all attempts. `spare`: retries without a wait, one for each other replica."""
        self._chance, self._spare = chance, spare
        self._deadline = chance.clock.now() + timeout
        self._longest = _FIRST_SECONDS

    @property
    def left(self) -> float:
        """Seconds left. Raises DeadlineExceeded where there are none."""
        left = self._deadline - self._chance.clock.now()
        if left <= 0:
            raise DeadlineExceeded("time ran out; safe to call again with the same input")
        return left

    async def pause(self, error: RecurraError) -> bool:
        """Wait for the next attempt after `error`; False, at once, where there shall be none."""
        if not error.retryable:
            return False
        seconds = 0.0
        if self._spare > 0 and error.retry_after is None:
            self._spare -= 1
        else:
            seconds = self._longest * (1 + int.from_bytes(self._chance.entropy(2), "big")) / 65536
            self._longest = min(2 * self._longest, _LONGEST_SECONDS)
        seconds += error.retry_after or 0.0  # all who were turned away were told the same
        if self._chance.clock.now() + seconds >= self._deadline:
            return False
        await self._chance.clock.sleep(seconds)
        return True
