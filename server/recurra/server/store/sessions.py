"""The store of sessions: commits, reads and scans of records, in Redis or Valkey."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from itertools import chain
from typing import Any, Final

from hiredis import ReplyError
from numpy.typing import NDArray

from recurra.server.store.commit import APPLIED, SCRIPT, Command, commands, reads
from recurra.server.store.pipe import Pipe
from recurra.server.store.record import HEADER, NAME_BYTES
from recurra.wire.errors import DataLoss, RecurraError, StoreFull, StoreUnavailable

Array = NDArray[Any]
CommitReply = int | bytes | RecurraError
Observe = Callable[[str, float], None]

_MENDS: Final = 3  # the script may be lost again before it is used
_LOAD_SCRIPT: Final = (b"SCRIPT", b"LOAD", SCRIPT)


class RedisStore:
    """Records by key. One ordered pipe, so a read sees every commit that was sent before it."""

    def __init__(self, url: str, *, timeout_seconds: float, observe: Observe) -> None:
        """`url`: redis://, rediss:// or unix://, with user and password if any. `observe`: told command, seconds."""
        self._observe = observe
        self._pipe = Pipe(url, timeout_seconds=timeout_seconds, opening=_LOAD_SCRIPT)

    def commit(self, keys: Array, expected: Array, records: Array, ttl_ms: Array) -> Sent:
        """Send each record to the place of the one with the expected header. One round trip.

        Args:
            keys: (N, K) uint8.
            expected: (N,) HEADER, what must be there; zeros: nothing.
            records: (N, R) uint8.
            ttl_ms: (N,) int64.

        Returns:
            to be awaited. For each session APPLIED, DUPLICATE (it was there already) or MISSING, the header that is
            there instead, or the error of this session alone.

        Raises:
            StoreUnavailable: no answer in time; unknown which were applied.
        """
        packed = commands(keys, expected, records, ttl_ms)
        return Sent(self._pipe, packed, [self._pipe.send(command.wire.data, 1) for command in packed], self._observe)

    async def read(self, keys: Array) -> list[bytes | RecurraError | None]:
        """The records at `keys`, (N, K) uint8; None where nothing is. Raises StoreUnavailable."""
        wire = reads(keys)
        began = time.perf_counter()
        replies = await self._pipe.send(wire.data.cast("B"), len(wire))
        self._observe("read", time.perf_counter() - began)
        return [_told(reply) for reply in replies]

    async def scan(self, prefix: bytes, cursor: int, count: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Some keys that start with `prefix`, each with the start of its record (header and name), and the next cursor.

        0 begins and ends. Raises StoreUnavailable.
        """
        [found] = await self._pipe.command("SCAN", cursor, "MATCH", prefix + b"*", "COUNT", count)
        if isinstance(found, ReplyError):
            raise _told(found)
        following, keys = found
        if not keys:
            return int(following), []
        reads = [self._pipe.command("GETRANGE", key, 0, HEADER.itemsize + NAME_BYTES - 1) for key in keys]
        heads = [(await reply)[0] for reply in reads]
        return int(following), [(key, head) for key, head in zip(keys, heads, strict=True) if isinstance(head, bytes)]

    async def ping(self) -> None:
        """Raise StoreUnavailable unless the store answers."""
        [reply] = await self._pipe.command("PING")
        if isinstance(reply, ReplyError):
            raise _told(reply)

    async def close(self) -> None:
        await self._pipe.close()


class Sent:
    """A commit on its way. Awaited, it gives the replies; see RedisStore.commit."""

    def __init__(
        self, pipe: Pipe, packed: list[Command], answers: list[asyncio.Future[list[Any]]], observe: Observe
    ) -> None:
        self._pipe, self._packed, self._answers, self._observe = pipe, packed, answers, observe
        self._began = time.perf_counter()

    def __await__(self) -> Generator[Any, None, list[CommitReply]]:
        return self._replies().__await__()

    async def _replies(self) -> list[CommitReply]:
        parts = [await self._mended(*each) for each in zip(self._packed, self._answers, strict=True)]
        self._observe("commit", time.perf_counter() - self._began)
        replies = parts[0] if len(parts) == 1 else list(chain.from_iterable(parts))
        return replies if replies.count(APPLIED) == len(replies) else [_told(reply) for reply in replies]

    async def _mended(self, command: Command, sent: asyncio.Future[list[Any]]) -> list[Any]:
        """A command's replies; it is sent again if the store had lost the script (SCRIPT FLUSH, a new primary)."""
        answer = await sent
        for _ in range(_MENDS):
            if not (isinstance(answer[0], ReplyError) and "NOSCRIPT" in str(answer[0])):
                break
            loading = self._pipe.command(*_LOAD_SCRIPT)
            answer = await self._pipe.send(command.wire.data, 1)
            await loading
        replies: list[Any] = answer * command.rows if isinstance(answer[0], ReplyError) else answer[0]
        return replies


def _told(reply: Any) -> Any:
    """The reply, or, for an error reply, what it means for this session."""
    if not isinstance(reply, ReplyError):
        return reply
    text = str(reply)
    if "OOM" in text:
        return StoreFull("the store has no memory left; the session is as it was: give the store more memory")
    if "WRONGTYPE" in text:
        return DataLoss("something else than a session's record is at its key in the store")
    return StoreUnavailable(f"the store refused: {text}; safe to retry")
