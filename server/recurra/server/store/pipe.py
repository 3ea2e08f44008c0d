"""One ordered connection to the store: batches of commands go out whole and come back as lists.

redis-py makes the connection (URL, TLS, password, handshake); the batches then go over its streams, because asking it
for each reply in turn costs more than the store takes to make them.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hiredis
from redis.asyncio import Connection, ConnectionPool
from redis.exceptions import AuthenticationError, RedisError

from recurra.wire.errors import StoreUnavailable

_READ_BYTES = 1 << 18
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between attempts to connect


@dataclass(eq=False, slots=True)
class _Exchange:
    """Commands on their way, and the replies that came so far."""

    wire: Any  # a buffer
    count: int
    deadline: float
    answer: asyncio.Future[list[Any]]
    replies: list[Any]
    timer: asyncio.TimerHandle | None = None


class Pipe:
    """A pipeline of batches, answered in order; after a broken connection what was not answered is sent again.

    Every command must therefore be idempotent. A batch that is not answered in time fails with StoreUnavailable:
    unknown whether it was applied.
    """

    def __init__(self, url: str, *, timeout_seconds: float, opening: tuple[bytes, ...] = ()) -> None:
        """`opening`: a command sent first on each new connection."""
        self._pool = ConnectionPool.from_url(url, protocol=2, socket_connect_timeout=timeout_seconds, driver_info=None)
        self._timeout = timeout_seconds
        self._opening = _packed(opening) if opening else b""
        self._waiting: deque[_Exchange] = deque()
        self._writer: asyncio.StreamWriter | None = None
        self._work = asyncio.Event()
        self._failure = "no connection yet"
        self._task = asyncio.create_task(self._serve(), name="store pipe")

    def send(self, wire: Any, count: int) -> asyncio.Future[list[Any]]:
        """Send `count` commands, packed in the buffer `wire`. The future's list holds their replies, errors too."""
        loop = asyncio.get_running_loop()
        exchange = _Exchange(wire, count, loop.time() + self._timeout, loop.create_future(), [])
        self._waiting.append(exchange)
        exchange.timer = loop.call_at(exchange.deadline, self._expire)
        if self._writer is not None:
            self._writer.write(wire)
        self._work.set()
        return exchange.answer

    def command(self, *parts: bytes | str | int) -> asyncio.Future[list[Any]]:
        """Send one command."""
        return self.send(_packed(parts), 1)

    async def close(self) -> None:
        """Drop the connection; what is unanswered fails."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._fail(lambda _: True)
        await self._pool.disconnect()

    async def _serve(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            await self._work.wait()
            connection: Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                pause = _FIRST_PAUSE
                await self._exchange(connection)
            except (OSError, RedisError, EOFError) as error:
                self._failure = str(error) or type(error).__name__
                if isinstance(error, AuthenticationError):
                    self._fail(lambda _: True)
            finally:
                self._writer = None
                await connection.disconnect(nowait=True)
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _exchange(self, connection: Connection) -> None:
        reader, writer = connection._reader, connection._writer  # noqa: SLF001 # see the module's words
        if reader is None or writer is None:
            raise EOFError("connection closed")
        parser = hiredis.Reader()
        skip = bool(self._opening)
        writer.write(self._opening)
        for exchange in self._waiting:
            exchange.replies.clear()
            writer.write(exchange.wire)
        self._writer = writer
        while data := await reader.read(_READ_BYTES):
            if self._writer is not writer:
                break
            parser.feed(data)
            replies = list(iter(parser.gets, False))  # drained in C; no command here answers 0
            if skip and replies:
                del replies[0]
                skip = False
            self._hand_out(replies)
        raise EOFError("the store closed the connection")

    def _hand_out(self, replies: list[Any]) -> None:
        while replies:
            first = self._waiting[0]
            missing = first.count - len(first.replies)
            first.replies += replies[:missing]
            replies = replies[missing:]
            if len(first.replies) == first.count:
                self._waiting.popleft()
                self._timer_off(first)
                if not first.answer.done():
                    first.answer.set_result(first.replies)
        if not self._waiting:
            self._work.clear()

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._writer is not None:  # what is given up has replies to come: only a new connection is in step again
            self._writer.transport.abort()
            self._writer, self._failure = None, "no answer in time"
        self._fail(lambda late: late.deadline <= now)

    def _fail(self, which: Callable[[_Exchange], bool]) -> None:
        gone = [exchange for exchange in self._waiting if which(exchange)]
        self._waiting = deque(exchange for exchange in self._waiting if not which(exchange))
        for exchange in gone:
            self._timer_off(exchange)
            if not exchange.answer.done():
                exchange.answer.set_exception(
                    StoreUnavailable(
                        f"the store did not answer within {self._timeout:g} s ({self._failure}); safe to retry"
                    )
                )
                exchange.answer.exception()  # whoever waits sees it; nobody waiting is no fault
        if not self._waiting:
            self._work.clear()

    @staticmethod
    def _timer_off(exchange: _Exchange) -> None:
        if exchange.timer is not None:  # it would keep the buffer until the deadline
            exchange.timer.cancel()


def _packed(parts: tuple[bytes | str | int, ...]) -> bytes:
    wire: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type] # its stub has a tuple of one
    return wire
