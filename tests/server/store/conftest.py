import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from redis.asyncio import Redis

from recurra.server.store import record
from recurra.server.store.embedded import EmbeddedStore
from recurra.server.store.record import HEADER, NAME_BYTES
from recurra.server.store.sessions import RedisStore

PREFIX = record.key_prefix("t", "m")


class Rows:
    """Columns of a batch of sessions, as the engine would make them. Each commit's header is another one."""

    def __init__(self, names: list[str], *, prefix: bytes = PREFIX, ttl_ms: int = 60_000, state: int = 32) -> None:
        self.names = names
        self.identities = [record.identity("t", "m", name) for name in names]
        self.keys = np.array([list(record.key(prefix, identity)) for identity in self.identities], np.uint8)
        self.expected = np.zeros(len(names), HEADER)
        self.ttl_ms = np.full(len(names), ttl_ms, np.int64)
        self._state = state

    def __len__(self) -> int:
        return len(self.names)

    def key(self, row: int) -> bytes:
        return self.keys[row].tobytes()

    def next(self) -> np.ndarray:
        """The records that come after `expected`; their headers are the ones expected from then on."""
        self.before = self.expected
        new = self.expected.copy()
        new["format"], new["kind"] = record.FORMAT, record.LIVE
        new["identity"] = [np.frombuffer(identity, "<u8") for identity in self.identities]
        new["commit"] = np.frombuffer(os.urandom(16 * len(self)), "<u8").reshape(-1, 2)
        new["position"] += 1
        new["name_bytes"] = [len(name.encode()) for name in self.names]
        padded = np.array([list(name.encode().ljust(NAME_BYTES, b"\0")) for name in self.names], np.uint8)
        state = np.frombuffer(os.urandom(len(self) * self._state), np.uint8).reshape(len(self), -1)
        records = record.pack(new, padded, state, np.empty((len(self), 0), np.uint8))
        self.expected = new
        return records


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
    started = await EmbeddedStore.start(tmp_path / "valkey", appendfsync="no")
    yield started
    await started.stop()


@pytest.fixture
async def redis(valkey: EmbeddedStore) -> AsyncIterator[Redis]:
    """Somebody else's connection to the same store."""
    async with Redis.from_url(valkey.url) as client:
        yield client


@pytest.fixture
def observed() -> list[str]:
    return []


@pytest.fixture
async def sessions(valkey: EmbeddedStore, observed: list[str]) -> AsyncIterator[RedisStore]:
    store = RedisStore(valkey.url, timeout_seconds=5, observe=lambda command, _: observed.append(command))
    yield store
    await store.close()


@pytest.fixture
def rows() -> Callable[..., Rows]:
    def make(count: int = 3, **more) -> Rows:
        return Rows([f"session {at}" for at in range(count)], **more)

    return make


@contextmanager
def suspended(pid: int):
    """Stop a process for a while: it keeps its connections and answers nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def stuck(valkey: EmbeddedStore):
    return lambda: suspended(valkey.pid)


async def commit(store: RedisStore, rows: Rows, *, expected: np.ndarray | None = None) -> list:
    records = rows.next()
    expected = rows.before if expected is None else expected
    async with asyncio.timeout(20):
        return await store.commit(rows.keys, expected, records, rows.ttl_ms)


@pytest.fixture(name="commit")
def commit_() -> Callable:
    return commit
