"""Many values between the caller's thread, which has an iterable, and the event loop, which makes outputs of them.

Neither side is woken for each: what the caller took lies in a queue until the loop comes by; outputs cross in lists.
"""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable
from contextlib import aclosing
from functools import wraps
from typing import Concatenate, Final, Generic, ParamSpec, TypeVar

from recurra.client.bridge import Bridged

T = TypeVar("T")
C = TypeVar("C")
A = TypeVar("A")
P = ParamSpec("P")

_AHEAD: Final = 256  # values that the caller takes before the loop asks for more


def ferrying(
    method: Callable[Concatenate[A, AsyncIterator[C], P], AsyncGenerator[T, None]],
    lists: Callable[Concatenate[A, AsyncIterator[C], P], AsyncGenerator[list[T], None]],
) -> Callable[Concatenate[Bridged[A], Iterable[C], P], Generator[T, None, None]]:
    """The asyncio handle's generator method as a blocking generator; the values are taken in the caller's thread.

    `lists`: the same method, whose outputs come in lists.
    """

    @wraps(method)
    def call(self: Bridged[A], values: Iterable[C], /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        ferry: _Ferry[C, T] = _Ferry()
        self._loop.run(ferry.start(lists(self._inner, ferry.values(), *args, **kwargs)))
        try:
            yield from ferry.cross(iter(values))
        finally:
            self._loop.run(ferry.stop())

    return call


class _Ferry(Generic[C, T]):
    def __init__(self) -> None:
        self._taken: deque[C] = deque()  # by the caller, for the loop
        self._came: queue.SimpleQueue[list[T] | BaseException | None] = queue.SimpleQueue()  # None: the end
        self._exhausted = False
        self._asleep = self._full = False  # the loop waits for values; the caller, for room
        self._woken = asyncio.Event()
        self._pumping: asyncio.Task[None] | None = None

    async def start(self, outputs: AsyncGenerator[list[T], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pumping = asyncio.create_task(self._pump(outputs))

    async def stop(self) -> None:
        assert self._pumping is not None
        self._pumping.cancel()
        await asyncio.gather(self._pumping, return_exceptions=True)

    def cross(self, values: Iterable[C]) -> Generator[T, None, None]:
        """In the caller's thread: take values while there is room, and give outputs as soon as they are there."""
        source = iter(values)
        while True:
            self._full = len(self._taken) >= _AHEAD
            waits = self._exhausted or (self._full and len(self._taken) >= _AHEAD)
            if waits or not self._came.empty():
                came = self._came.get()
                if came is None:
                    return
                if isinstance(came, BaseException):
                    raise came
                yield from came
                continue
            try:
                self._taken.append(next(source))
            except StopIteration:
                self._exhausted = True
            self._wake()

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            self._loop.call_soon_threadsafe(self._woken.set)

    async def values(self) -> AsyncGenerator[C, None]:
        """On the loop: what the caller took."""
        while True:
            while self._taken:
                yield self._taken.popleft()
                if self._full and len(self._taken) < _AHEAD // 2:
                    self._full = False
                    self._came.put([])
            if self._exhausted and not self._taken:
                return
            self._asleep = True
            if self._taken or self._exhausted:
                continue
            await self._woken.wait()
            self._woken.clear()

    async def _pump(self, outputs: AsyncGenerator[list[T], None]) -> None:
        try:
            async with aclosing(outputs):
                async for some in outputs:
                    self._came.put(some)
        except BaseException as error:  # told in the caller's thread
            self._came.put(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._came.put(None)
