"""Several servers that share a store, as one channel: the next one is asked when one cannot serve."""

# ruff: noqa: ASYNC109 - timeouts are part of every call's surface

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

from recurra.client.channel import A, Channel, Method, Q, Stream
from recurra.wire.errors import Draining, InvalidArgument, Owned, RecurraError, Unreachable


class Replicas:
    """A channel over others.

    An attempt goes to one of them; one that is away, draining, or not the owner of the session is left for the next.

    Attributes:
        current: the index of the one that is asked.

    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        """Raises InvalidArgument without any channel."""
        if not channels:
            raise InvalidArgument("give at least one address")
        self._channels = list(channels)
        self.current = 0

    def __len__(self) -> int:
        return len(self._channels)

    async def call(self, method: Method[Q, A], request: Q, *, timeout: float) -> A:
        current = self.current
        try:
            return await self._channels[current].call(method, request, timeout=timeout)
        except RecurraError as error:
            self.failed(current, error)
            raise

    def open(self, method: Method[Q, A]) -> Stream[Q, A]:
        return _Routed(self, self.current, self._channels[self.current].open(method))

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    def failed(self, asked: int, error: RecurraError) -> None:
        """Note that the channel of this index answered with `error`."""
        if isinstance(error, Unreachable | Draining | Owned) and asked == self.current:
            self.current = (asked + 1) % len(self._channels)


class _Routed(Generic[Q, A]):
    """A stream that tells the replicas how it failed."""

    def __init__(self, replicas: Replicas, index: int, stream: Stream[Q, A]) -> None:
        self._replicas, self._index, self._stream = replicas, index, stream

    async def write(self, message: Q, *, timeout: float) -> None:
        try:
            await self._stream.write(message, timeout=timeout)
        except RecurraError as error:
            self._replicas.failed(self._index, error)
            raise

    async def read(self, *, timeout: float | None) -> A:
        try:
            return await self._stream.read(timeout=timeout)
        except RecurraError as error:
            self._replicas.failed(self._index, error)
            raise

    def cancel(self) -> None:
        self._stream.cancel()
