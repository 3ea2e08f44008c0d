"""One ordered connection to the store: batches of commands go out whole and come back as lists.

redis-py makes the connection (URL, TLS, password, handshake); the batches then go over its transport, because asking it
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


class _Replies(asyncio.Protocol):
    """What comes over one connection, parsed in C and handed on as it comes.

    Attributes:
        lost: set once nothing more is to come; `failure` says why.
        served: whether the store has answered.
    """

    def __init__(self, hand_out: Callable[[list[Any]], None], skip: int) -> None:
        """`skip`: how many replies nobody waits for come first."""
        self.lost = asyncio.Event()
        self.failure = "the store closed the connection"
        self.served = False
        self._parser = hiredis.Reader()
        self._hand_out, self._skip = hand_out, skip

    def data_received(self, data: bytes) -> None:
        if self.lost.is_set():
            return
        self._parser.feed(data)
        try:
            replies = list(iter(self._parser.gets, False))  # no command here answers 0, which equals False
        except hiredis.ProtocolError as error:
            self._give_up(str(error))
            return
        if self._skip and replies:
            opened, self._skip = replies.pop(0), 0
            if isinstance(opened, hiredis.ReplyError) and str(opened).startswith("LOADING"):
                self._give_up(str(opened))  # it still reads its file, and would refuse every command
                return
        self.served = True
        self._hand_out(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost.set()

    def _give_up(self, failure: str) -> None:
        self.failure = failure
        self.lost.set()


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
        self._replies = _Replies(self._hand_out, 0)
        self._transport: asyncio.WriteTransport | None = None
        self._work = asyncio.Event()
        self._failure = "no connection yet"
        self._pause = _FIRST_PAUSE
        self._task = asyncio.create_task(self._serve(), name="store pipe")

    def send(self, wire: Any, count: int) -> asyncio.Future[list[Any]]:
        """Send `count` commands, packed in the buffer `wire`. The future's list holds their replies, errors too."""
        loop = asyncio.get_running_loop()
        exchange = _Exchange(wire, count, loop.time() + self._timeout, loop.create_future(), [])
        self._waiting.append(exchange)
        exchange.timer = loop.call_at(exchange.deadline, self._expire)
        if self._transport is not None:
            self._transport.write(wire)
        self._work.set()
        return exchange.answer

    def command(self, *parts: bytes | str | int) -> asyncio.Future[list[Any]]:
        """Send one command."""
        return self.send(_packed(parts), 1)

    async def close(self) -> None:
        """Drop the connection; what is unanswered fails."""
        while not self._task.done():
            self._task.cancel()  # again and again: redis-py may lose one while it connects
            await asyncio.wait([self._task], timeout=_FIRST_PAUSE)
        self._fail(lambda _: True)
        await self._pool.disconnect()

    async def _serve(self) -> None:
        while True:
            await self._work.wait()
            connection: Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                async with asyncio.timeout(self._timeout):
                    await connection.connect()  # type: ignore[no-untyped-call]
                await self._exchange(connection)
            except (OSError, RedisError, EOFError) as error:
                self._failure = str(error) or type(error).__name__
                if AuthenticationError in (type(error), type(error.__cause__)):  # on unix sockets it comes wrapped
                    self._fail(lambda _: True)
            finally:
                self._transport = None
                await connection.disconnect(nowait=True)
            await asyncio.sleep(self._pause * random.uniform(0.5, 1))  # noqa: S311
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    async def _exchange(self, connection: Connection) -> None:
        writer = connection._writer  # noqa: SLF001 # see the module's words
        if writer is None:
            raise EOFError("connection closed")
        transport = writer.transport
        replies = self._replies = _Replies(self._hand_out, skip=1 if self._opening else 0)
        transport.set_protocol(replies)
        transport.write(self._opening)
        for exchange in self._waiting:
            exchange.replies.clear()
            transport.write(exchange.wire)
        self._transport = transport
        await replies.lost.wait()
        if replies.served:
            self._pause = _FIRST_PAUSE
        raise EOFError(replies.failure)

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
        if self._transport is not None:  # what is given up has replies to come: only a new connection is in step again
            self._transport.abort()
            self._replies.lost.set()
            self._transport, self._failure = None, "no answer in time"
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
