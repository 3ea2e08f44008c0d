"""The store of sessions: commits, reads and scans of records, in Redis or Valkey, whatever their topology."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

from hiredis import ReplyError
from numpy.typing import NDArray

from recurra.server.store import address
from recurra.server.store.cluster import Cluster
from recurra.server.store.commit import APPLIED
from recurra.server.store.primary import Primary
from recurra.wire.errors import DataLoss, RecurraError, StoreFull, StoreUnavailable

Array = NDArray[Any]
CommitReply = int | bytes | RecurraError
Observe = Callable[[str, float], None]


class RedisStore:
    """Records by key. A read sees every commit that was sent before it."""

    def __init__(self, url: str, *, timeout_seconds: float, observe: Observe, replicas: int = 1) -> None:
        """Connect, once there is something to send.

        Args:
            url: redis://, rediss:// or unix://; redis+sentinel:// or redis+cluster:// (or rediss+) with several hosts.
            observe: told of each command and how many seconds it took.
            replicas: of the store, that must have what is committed as replicated.
        """
        self._observe = observe
        self._records: Primary | Cluster
        if address.is_cluster(url):
            nodes = address.nodes(url, timeout_seconds)
            self._records = Cluster(nodes, timeout_seconds=timeout_seconds, replicas=replicas)
        else:
            way = address.primary(url, timeout_seconds)
            self._records = Primary(way, timeout_seconds=timeout_seconds, replicas=replicas)

    def commit(self, keys: Array, expected: Array, records: Array, ttl_ms: Array, *, replicated: bool = False) -> Sent:
        """Send each record to the place of the one with the expected header. One round trip.

        Args:
            keys: (N, K) uint8.
            expected: (N,) HEADER, what must be there; zeros: nothing.
            records: (N, R) uint8.
            ttl_ms: (N,) int64.
            replicated: answer once the store's replicas have it.

        Returns:
            to be awaited. For each session APPLIED, DUPLICATE (it was there already) or MISSING, the header that is
            there instead, or the error of this session alone.

        Raises:
            StoreUnavailable: no answer in time; unknown which were applied.
        """
        return Sent(self._records.commit(keys, expected, records, ttl_ms, replicated=replicated), self._observe)

    async def read(self, keys: Array) -> list[bytes | RecurraError | None]:
        """The records at `keys`, (N, K) uint8; None where nothing is. Raises StoreUnavailable."""
        began = time.perf_counter()
        replies = await self._records.read(keys)
        self._observe("read", time.perf_counter() - began)
        return [_told(reply) for reply in replies]

    async def scan(self, prefix: bytes, cursor: int, count: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Some keys that start with `prefix`, each with the start of its record (header and name), and the next cursor.

        0 begins and ends. Raises StoreUnavailable.
        """
        try:
            return await self._records.scan(prefix, cursor, count)
        except ReplyError as error:
            raise _told(error) from None

    async def ping(self) -> None:
        """Raise StoreUnavailable unless the store answers."""
        try:
            await self._records.ping()
        except ReplyError as error:
            raise _told(error) from None

    async def close(self) -> None:
        await self._records.close()


class Sent:
    """A commit on its way. Awaited, it gives the replies; see RedisStore.commit."""

    def __init__(self, outcomes: Any, observe: Observe) -> None:
        self._outcomes, self._observe = outcomes, observe
        self._began = time.perf_counter()

    def __await__(self) -> Generator[Any, None, list[CommitReply]]:
        replies: list[CommitReply] = yield from self._outcomes.__await__()
        self._observe("commit", time.perf_counter() - self._began)
        return replies if replies.count(APPLIED) == len(replies) else [_told(reply) for reply in replies]


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
