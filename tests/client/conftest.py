from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from recurra.client import AsyncClient, Client
from recurra.client.grpc_channel import GrpcChannel
from tests.client.faulty import Faulty


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server.address, timeout=20) as client:
        yield client


@pytest.fixture
def faulty(server) -> Faulty:
    """The channel of `aclient`; its script can be set."""
    return Faulty(GrpcChannel(server.address))


@pytest.fixture
async def aclient(faulty: Faulty) -> AsyncIterator[AsyncClient]:
    """A client whose channel loses what `faulty` says."""
    async with AsyncClient(channels=[faulty], timeout=20) as client:
        yield client
