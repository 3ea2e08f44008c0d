import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from recurra import models
from recurra.server.engine.operation import Block, Kind
from tests.server.engine.world import Replica, World, world
from tests.service.processes import ValkeyProcess


def make_block(slots: list[int], **more) -> Block:
    """A block of operations of the sessions in these slots; like all of them it needs a running loop to be made."""
    rows = len(slots)
    fields = {
        "kind": Kind.RESET,
        "ids": np.arange(1, 2 * rows + 1, dtype=np.uint64).reshape(rows, 2),
        "afters": np.zeros((rows, 2), np.uint64),
        "ttl_ms": 1000,
        "deadline": 1e9,
    }
    return Block(slots=np.array(slots, np.intp), **(fields | more))


@pytest.fixture
def block() -> Iterator[Callable[..., Block]]:
    with asyncio.Runner() as runner:

        async def make(slots: list[int], more: dict) -> Block:
            return make_block(slots, **more)

        yield lambda slots=(1,), **more: runner.run(make(list(slots), more))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a store for one file's tests."""
    process = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    yield process.url
    process.close()


@pytest.fixture(scope="module")
def picky(repository: Path) -> models.Model:
    """The zoo's model that answers for its whole history: h' = h / 2 + x, y = h'."""
    return models.load(repository / "picky", provider="cpu")


@pytest.fixture(params=["host", "device"])
async def here(request: pytest.FixtureRequest, store: str, picky: models.Model) -> AsyncIterator[World]:
    """A world of that model, empty, with states on the host or in a pool."""
    async with world(store, picky, request.param) as made:
        yield made


@pytest.fixture
async def a(here: World) -> Replica:
    return await here.replica()


@pytest.fixture
async def b(here: World) -> Replica:
    return await here.replica()
