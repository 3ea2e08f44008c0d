"""The bridge from blocking calls to the asyncio handles: an event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

T = TypeVar("T")
C = TypeVar("C")
A = TypeVar("A")
P = ParamSpec("P")


class LoopThread:
    """An event loop that runs on a daemon thread as long as the process.

    All blocking clients share one: gRPC's poller serves all loops of a process, and stumbles over one that was closed
    while calls on it were being cancelled.
    """

    _shared: LoopThread | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.process_id = os.getpid()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="recurra-client", daemon=True).start()

    @classmethod
    def shared(cls) -> LoopThread:
        """The process's own; a fork starts another."""
        with cls._lock:
            if cls._shared is None or cls._shared.process_id != os.getpid():
                cls._shared = cls()
            return cls._shared

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. Interrupting the wait cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


class Bridged(Generic[A]):
    """A blocking handle: an asyncio handle and the loop that it lives on. Used from any thread."""

    def __init__(self, loop: LoopThread, inner: A) -> None:
        self._loop, self._inner = loop, inner


def blocking(method: Callable[Concatenate[A, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Bridged[A], P], T]:
    """The asyncio handle's method as a blocking one of the same signature."""

    @wraps(method)
    def call(self: Bridged[A], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.run(method(self._inner, *args, **kwargs))

    return call


def iterating(
    method: Callable[Concatenate[A, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Bridged[A], P], Generator[T, None, None]]:
    """The asyncio handle's generator method as a blocking generator of the same signature."""

    @wraps(method)
    def call(self: Bridged[A], /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        outputs = method(self._inner, *args, **kwargs)
        try:
            while True:
                try:
                    output = self._loop.run(_next(outputs))
                except _Exhausted:
                    return
                yield output
        finally:
            self._loop.run(outputs.aclose())

    return call


def streaming(
    method: Callable[Concatenate[A, AsyncIterator[C], P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Bridged[A], Iterable[C], P], Generator[T, None, None]]:
    """The asyncio handle's stream of chunks as a blocking generator; the chunks are taken in the caller's thread."""

    @wraps(method)
    def call(self: Bridged[A], chunks: Iterable[C], /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        ferry: _Ferry[C, T] = _Ferry()
        source = iter(chunks)
        self._loop.run(ferry.start(method(self._inner, ferry.chunks(), *args, **kwargs)))
        try:
            while (event := ferry.events.get()) is not None:
                if isinstance(event, Future):
                    _fulfil(event, source)
                elif isinstance(event, BaseException):
                    raise event
                else:
                    yield event.output
        finally:
            self._loop.run(ferry.stop())

    return call


@dataclass(frozen=True)
class _Came(Generic[T]):
    output: T


class _Ferry(Generic[C, T]):
    """Between the loop, which asks for chunks and has outputs, and the caller's thread, which has chunks.

    Attributes:
        events: what the loop has for the caller: a wish for a chunk, an output, an error that ended it, None: the end.

    """

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Future[C] | _Came[T] | BaseException | None] = queue.SimpleQueue()
        self._pumping: asyncio.Task[None] | None = None

    async def start(self, outputs: AsyncGenerator[T, None]) -> None:
        self._pumping = asyncio.create_task(self._pump(outputs))

    async def stop(self) -> None:
        assert self._pumping is not None
        self._pumping.cancel()
        await asyncio.gather(self._pumping, return_exceptions=True)

    async def chunks(self) -> AsyncGenerator[C, None]:
        while True:
            wish: Future[C] = Future()
            self.events.put(wish)
            try:
                chunk = await asyncio.wrap_future(wish)
            except _Exhausted:
                return
            yield chunk

    async def _pump(self, outputs: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    self.events.put(_Came(output))
        except BaseException as error:  # told in the caller's thread
            self.events.put(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self.events.put(None)


class _Exhausted(Exception):
    """An iterator's end: StopIteration may cross neither a coroutine nor a future."""


async def _next(outputs: AsyncGenerator[T, None]) -> T:
    try:
        return await anext(outputs)
    except StopAsyncIteration:
        raise _Exhausted from None


def _fulfil(wish: Future[C], source: Any) -> None:
    try:
        chunk = next(source)
    except StopIteration:
        wish.set_exception(_Exhausted())
    except BaseException as error:
        wish.set_exception(error)
        raise
    else:
        wish.set_result(chunk)
