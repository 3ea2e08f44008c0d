"""The simulated store answers as the real script on a real Valkey does, whatever is committed in whatever order."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from recurra.server.store.record import HEADER
from recurra.server.store.sessions import RedisStore
from recurra.wire.errors import StoreFull
from tests.service.processes import ValkeyProcess
from tests.simulation.store import Node

KEYS, HEADERS = 3, 4

# A commit: which key, which header is expected (0: nothing), which one it brings; or what befalls the store.
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("commit"),
            st.lists(st.tuples(st.integers(0, HEADERS), st.integers(1, HEADERS)), min_size=KEYS, max_size=KEYS),
        ),
        st.tuples(st.sampled_from(("full", "roomy", "gone", "read")), st.integers(0, KEYS - 1)),
    ),
    max_size=20,
)


def header(number: int) -> bytes:
    """One of a few headers; 0: of nothing."""
    made = np.zeros(1, HEADER)
    if number:
        made["format"], made["commit"] = 1, number
    return made.tobytes()


@pytest.fixture
def url(tmp_path: Path):
    process = ValkeyProcess(tmp_path)
    yield process.url
    process.close()


def plain(answers: list) -> list:
    return [StoreFull if isinstance(answer, StoreFull) else answer for answer in answers]


def test_the_simulated_commit_is_the_scripts(url: str) -> None:
    @settings(max_examples=150, deadline=None, database=None)
    @given(STEPS)
    def compare(steps: list) -> None:
        asyncio.run(both(url, steps))

    compare()


async def both(url: str, steps: list) -> None:
    """The same to both, compared after each step."""
    node, names = Node(lambda: 0.0), [os.urandom(8) for _ in range(KEYS)]
    keys = np.frombuffer(b"".join(names), np.uint8).reshape(KEYS, 8)
    store = RedisStore(url, timeout_seconds=20, observe=lambda *_: None)
    async with Redis.from_url(url) as redis:
        try:
            for what, which in steps:
                if what == "commit":
                    expected = [header(number) for number, _ in which]
                    records = [header(number) + b"state" * 8 for _, number in which]
                    columns = np.frombuffer(b"".join(records), np.uint8).reshape(KEYS, -1)
                    heads, ttl_ms = np.frombuffer(b"".join(expected), HEADER), [60_000] * KEYS
                    told = await store.commit(keys, heads, columns, np.array(ttl_ms))
                    assert plain(told) == plain(node.commit([*zip(names, expected, records, ttl_ms, strict=True)]))
                elif what in ("full", "roomy"):
                    node.full = what == "full"
                    await redis.config_set("maxmemory", int(node.full))
                elif what == "gone":
                    node.records.pop(names[which], None)
                    await redis.delete(names[which])
                assert await store.read(keys) == [node.get(name) for name in names]
        finally:
            await redis.config_set("maxmemory", 0)
            await store.close()
