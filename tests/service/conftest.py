"""The shared server's store, and a second server on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from recurra.server.store import record
from tests.service.caller import Caller
from tests.service.processes import ServerProcess, store_client


@pytest.fixture(scope="session")
def store(server: ServerProcess) -> Iterator[redis.Redis]:
    """A client of the shared server's store."""
    with store_client(server.store_socket) as client:
        yield client


@pytest.fixture(scope="session")
def other(server: ServerProcess, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """A client of a second server on the shared server's store."""
    process = ServerProcess(repository, tmp_path_factory.mktemp("data"), store=f"unix://{server.store_socket}")
    try:
        with Caller(process.start().address) as caller:
            yield caller
    finally:
        process.close()


def key(model: str, session: str) -> bytes:
    """Where a session's record is."""
    return record.key(record.key_prefix("default", model), record.identity("default", model, session))
