"""One ordered connection to the store: batches of commands go out whole and come back as lists.

redis-py makes the connection (address, TLS, password, handshake); the batches then go over its transport, because
asking it for each reply in turn costs more than the store takes to make them.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import hiredis
from redis.asyncio import Connection, ConnectionPool
from redis.exceptions import AuthenticationError, RedisError

from recurra.wire.errors import StoreUnavailable

_SEND_BUFFER: Final = 1 << 20  # bytes; the system's limit counts: a batch's commands should go in one write
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between attempts to connect
_NOTHING: Final = object()  # what the parser gives when it has no whole reply

# Errors of a store that is no primary, or not yet, or has lost the script: the next connection finds what it needs.
_NOT_NOW: Final = ("READONLY", "LOADING", "MASTERDOWN", "NOSCRIPT", "UNBLOCKED", "ERR WAIT cannot")


class ConnectionLost(Exception):
    """The connection broke before the answer: for who then asks another node. Unknown whether applied."""


@dataclass(eq=False, slots=True)
class _Exchange:
    """Commands on their way, and the replies that came so far."""

    wire: Any  # a buffer
    count: int
    answer: asyncio.Future[list[Any]]
    replies: list[Any]
    timer: asyncio.TimerHandle | None = None


class _Replies(asyncio.Protocol):
    """What comes over one connection, parsed in C and handed on as it comes.

    Attributes:
        lost: set once nothing more is to come; `failure` says why.
        served: whether the store has answered.
        heard: when anything came last, in the event loop's seconds.
    """

    def __init__(self, hand_out: Callable[[list[Any]], None], skip: int) -> None:
        """`skip`: how many replies nobody waits for come first; one that tells a role must tell a primary's."""
        self.lost = asyncio.Event()
        self.failure = "the store closed the connection"
        self.served = False
        self.heard = asyncio.get_running_loop().time()
        self._parser = hiredis.Reader(notEnoughData=_NOTHING)
        self._hand_out, self._skip = hand_out, skip

    def data_received(self, data: bytes) -> None:
        if self.lost.is_set():
            return
        self.heard = asyncio.get_running_loop().time()
        self._parser.feed(data)
        try:
            replies = list(iter(self._parser.gets, _NOTHING))
        except hiredis.ProtocolError as error:
            self._give_up(str(error))
            return
        opened, replies = replies[: self._skip], replies[self._skip :]
        self._skip -= len(opened)
        failure = next(filter(None, map(_unfit, opened)), None)
        if failure is None:
            good, failure = _serving(replies)
            if good:
                self.served = True
                self._hand_out(good)
        if failure is not None:
            self._give_up(failure)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost.set()

    def _give_up(self, failure: str) -> None:
        self.failure = failure
        self.lost.set()


class Pipe:
    """A pipeline of batches, answered in order; after a broken connection what was not answered is sent again.

    Every command must therefore be idempotent. A batch that is not answered in time fails with StoreUnavailable:
    unknown whether it was applied. A store that turns out to be no primary, or not ready, is a broken connection.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        timeout_seconds: float,
        opening: Sequence[tuple[bytes, ...]] = (),
        resends: bool = True,
    ) -> None:
        """A pipe over connections that `pool` makes.

        Args:
            opening: commands sent first on each new connection.
            resends: whether what a broken connection left unanswered is sent again; else it fails: ConnectionLost.
        """
        self._pool, self._timeout, self._resends = pool, timeout_seconds, resends
        self._opening = [packed(*command) for command in opening]
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
        exchange = _Exchange(wire, count, loop.create_future(), [])
        self._waiting.append(exchange)
        exchange.timer = loop.call_later(self._timeout, self._expire, exchange)
        if self._transport is not None:
            self._transport.write(wire)
        self._work.set()
        return exchange.answer

    def command(self, *parts: bytes | str | int) -> asyncio.Future[list[Any]]:
        """Send one command."""
        return self.send(packed(*parts), 1)

    @property
    def connected(self) -> bool:
        return self._transport is not None

    @property
    def busy(self) -> bool:
        """Whether anything is unanswered."""
        return bool(self._waiting)

    def drop(self, why: str) -> None:
        """Break the connection."""
        self._failure = why
        if not self._resends:
            self._fail(ConnectionLost)
        if self._transport is not None:
            self._transport.abort()
            self._replies.failure = why
            self._replies.lost.set()
            self._transport = None

    async def close(self) -> None:
        """Drop the connection; what is unanswered fails."""
        while not self._task.done():
            self._task.cancel()  # again and again: redis-py may lose one while it connects
            await asyncio.wait([self._task], timeout=_FIRST_PAUSE)
        self._fail()
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
                    self._fail()
                elif not self._resends:
                    self._fail(ConnectionLost)
            finally:
                self._transport = None
                await connection.disconnect(nowait=True)
            if self._resends:
                await asyncio.sleep(self._pause * random.uniform(0.5, 1))  # noqa: S311
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    async def _exchange(self, connection: Connection) -> None:
        reader, writer = connection._reader, connection._writer  # noqa: SLF001 # see the module's words
        if reader is None or writer is None or reader.at_eof():
            raise EOFError("connection closed")
        transport = writer.transport
        replies = self._replies = _Replies(self._hand_out, skip=len(self._opening))
        transport.set_protocol(replies)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        transport.write(b"".join(self._opening))
        self._waiting = deque(exchange for exchange in self._waiting if not exchange.answer.done())
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

    def _expire(self, late: _Exchange) -> None:
        """Give one exchange up. Its replies may still come: it keeps its place, so that the others stay in step."""
        self._refuse(late)
        if self._transport is None:
            while self._waiting and self._waiting[0].answer.done():
                self._waiting.popleft()
            if not self._waiting:
                self._work.clear()
        elif asyncio.get_running_loop().time() - self._replies.heard >= self._timeout:  # a dead connection, or store
            self.drop("no answer in time")

    def _fail(self, error: type[Exception] = StoreUnavailable) -> None:
        """Give up all that waits."""
        for exchange in self._waiting:
            self._refuse(exchange, error)
        self._waiting.clear()
        self._work.clear()

    def _refuse(self, exchange: _Exchange, error: type[Exception] = StoreUnavailable) -> None:
        self._timer_off(exchange)
        exchange.wire = b""
        if not exchange.answer.done():
            text = f"the store did not answer within {self._timeout:g} s ({self._failure}); safe to retry"
            exchange.answer.set_exception(error(text))
            exchange.answer.exception()  # whoever waits sees it; nobody waiting is no fault

    @staticmethod
    def _timer_off(exchange: _Exchange) -> None:
        if exchange.timer is not None:  # it would keep the buffer until the deadline
            exchange.timer.cancel()


def packed(*parts: bytes | str | int) -> bytes:
    """One command as it goes over the wire."""
    wire: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type] # its stub has a tuple of one
    return wire


def _unfit(opened: Any) -> str | None:
    """Why a store that answers the opening so cannot be used."""
    if isinstance(opened, hiredis.ReplyError) and str(opened).startswith("LOADING"):
        return str(opened)  # it still reads its file, and would refuse every command
    return "the store is a replica" if isinstance(opened, list) and opened[:1] == [b"slave"] else None


def _serving(replies: list[Any]) -> tuple[list[Any], str | None]:
    """The replies up to one that a store gives which cannot serve now, and what that one says."""
    for place, reply in enumerate(replies):
        parts = reply if type(reply) is list else (reply,)
        if hiredis.ReplyError in map(type, parts):
            for part in parts:
                if isinstance(part, hiredis.ReplyError) and str(part).startswith(_NOT_NOW):
                    return replies[:place], str(part)
    return replies, None
