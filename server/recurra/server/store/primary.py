"""The sessions' records in a store with one primary, wherever that is at present."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from itertools import chain
from typing import Any, Final

from hiredis import ReplyError
from numpy.typing import NDArray

from recurra.server.store import commit
from recurra.server.store.address import Way
from recurra.server.store.commit import Command
from recurra.server.store.pipe import Pipe
from recurra.server.store.record import HEADER, NAME_BYTES
from recurra.server.store.replication import if_replicated, wait

Array = NDArray[Any]
Found = tuple[int, list[tuple[bytes, bytes]]]

OPENING: Final = (b"ROLE",), (b"SCRIPT", b"LOAD", commit.SCRIPT), (b"SCRIPT", b"LOAD", commit.STAGED_SCRIPT)

_WATCH_SECONDS: Final = 0.5
_STILL_PRIMARY: Final = wait(0, 0)  # a replica refuses it, where it would answer a read with what it has


class Primary:
    """Commits, reads and scans over one ordered pipe, so that a read sees every commit that was sent before it.

    What waits for the store's replicas holds up its connection: it has a pipe of its own, and a read waits for it.
    """

    def __init__(self, way: Way, *, timeout_seconds: float, replicas: int) -> None:
        self._way, self._timeout, self._replicas = way, timeout_seconds, replicas
        self._pipe = Pipe(way.pool, timeout_seconds=timeout_seconds, opening=OPENING)
        self._waiting: Pipe | None = None
        self._last: asyncio.Future[list[Any]] | None = None  # sent over that one
        self._watching = asyncio.create_task(self._watch(), name="watch over the primary")

    def commit(self, *columns: Array, replicated: bool) -> Sent:
        """See RedisStore.commit; errors are the store's own."""
        if columns[2].shape[1] < commit.STAGED_BYTES:
            return self.inline(*columns, replicated=replicated)
        wire = commit.staged(*columns)
        return self._sent(columns, [Command(wire.reshape(-1), len(wire), staged=True)], replicated=replicated)

    def inline(self, *columns: Array, replicated: bool) -> Sent:
        """The same without a stage."""
        return self._sent(columns, commit.commands(*columns), replicated=replicated)

    def _sent(self, columns: tuple[Array, ...], batch: Sequence[Command], *, replicated: bool) -> Sent:
        if not replicated:
            return Sent(self, columns, batch, [self._pipe.send(each.wire.data, each.replies) for each in batch])
        if self._waiting is None:
            self._waiting = Pipe(self._way.pool, timeout_seconds=self._timeout, opening=OPENING)
        # Whole, so that it is sent again whole: WAIT looks at the writes of its own connection alone.
        wire = b"".join([*(each.wire.tobytes() for each in batch), wait(self._replicas, self._timeout)])
        self._last = self._waiting.send(wire, sum(each.replies for each in batch) + 1)
        return Sent(self, columns, batch, [self._last], replicas=self._replicas)

    async def read(self, keys: Array) -> list[Any]:
        """What is at `keys`, (N, K) uint8."""
        if self._last is not None and not self._last.done():
            await asyncio.wait([self._last])
        replies = await self._pipe.send(commit.reads(keys).tobytes() + _STILL_PRIMARY, len(keys) + 1)
        return replies[:-1]

    async def scan(self, prefix: bytes, cursor: int, count: int) -> Found:
        """See RedisStore.scan. Raises ReplyError."""
        return await scanned(self._pipe, prefix, cursor, count)

    async def ping(self) -> None:
        """Raises ReplyError."""
        await pinged(self._pipe)

    async def _watch(self) -> None:
        """Leave a primary that was replaced: it is demoted only seconds later, and what it takes till then is lost."""
        while self._way.moved is not None:
            await asyncio.sleep(_WATCH_SECONDS)
            if self._pipe.connected and await self._way.moved():
                for pipe in filter(None, (self._pipe, self._waiting)):
                    pipe.drop("the sentinels name another primary")

    async def close(self) -> None:
        while not self._watching.done():
            self._watching.cancel()  # again and again: redis-py may lose one while it connects
            await asyncio.wait([self._watching], timeout=_WATCH_SECONDS / 10)
        for pipe in filter(None, (self._pipe, self._waiting)):
            await pipe.close()
        await self._way.close()


class Sent:
    """A commit on its way. Awaited, it gives each session's outcome; see RedisStore.commit."""

    def __init__(
        self,
        primary: Primary,
        columns: tuple[Array, ...],
        batch: Sequence[Command],
        answers: list[asyncio.Future[list[Any]]],
        *,
        replicas: int = 0,
    ) -> None:
        self._primary, self._columns, self._batch, self._answers = primary, columns, batch, answers
        self._replicas = replicas

    def __await__(self) -> Generator[Any, None, list[Any]]:
        replies: list[Any] = []
        for answer in self._answers:
            replies += yield from answer
        acknowledged = replies.pop() if self._replicas else None
        if self._batch[0].staged:
            found = commit.outcomes(replies)
            lost = [row for row, outcome in enumerate(found) if outcome == commit.UNSTAGED]
            if lost:
                columns = [column[lost] for column in self._columns]
                again = yield from self._primary.inline(*columns, replicated=self._replicas > 0).__await__()
                for row, outcome in zip(lost, again, strict=True):
                    found[row] = outcome
        elif len(replies) == 1 and isinstance(replies[0], list):
            [found] = replies
        else:
            found = list(chain.from_iterable(map(_rows, self._batch, replies)))
        return if_replicated(found, acknowledged, self._replicas) if self._replicas else found


def _rows(command: Command, reply: Any) -> list[Any]:
    """What a command for many sessions was answered, for each."""
    return [reply] * command.rows if isinstance(reply, ReplyError) else reply


async def scanned(pipe: Pipe, prefix: bytes, cursor: int, count: int) -> Found:
    """Some keys of one node, with the start of their records, and the next cursor. Raises ReplyError."""
    [found] = await pipe.command("SCAN", cursor, "MATCH", prefix + b"*", "COUNT", count)
    if isinstance(found, ReplyError):
        raise found
    following, keys = found
    if not keys:
        return int(following), []
    reads = [pipe.command("GETRANGE", key, 0, HEADER.itemsize + NAME_BYTES - 1) for key in keys]
    heads = [(await reply)[0] for reply in reads]
    return int(following), [(key, head) for key, head in zip(keys, heads, strict=True) if isinstance(head, bytes)]


async def pinged(pipe: Pipe) -> None:
    """Raise ReplyError unless the node answers."""
    [reply] = await pipe.command("PING")
    if isinstance(reply, ReplyError):
        raise reply
