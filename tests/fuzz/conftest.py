"""A server to be fuzzed, and a neighbour whose session must be served rightly all along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.neighbour import Neighbour
from tests.service.processes import ServerProcess


@pytest.fixture(scope="session")
def fuzzed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the fuzz's own, with limits as they are by default."""
    process = ServerProcess(repository, tmp_path_factory.mktemp("data"))
    try:
        yield process.start()
    finally:
        process.close()


@pytest.fixture(scope="session")
def neighbour(fuzzed: ServerProcess) -> Iterator[Neighbour]:
    with Neighbour(fuzzed) as neighbour:
        for _ in range(3):
            neighbour.step()
        neighbour.settle()
        yield neighbour


@pytest.fixture(autouse=True)
def unharmed(neighbour: Neighbour) -> Iterator[None]:
    """After each test the server lives, its neighbour is served rightly, and it has kept neither memory nor sockets."""
    neighbour.step()
    yield
    assert neighbour.failures() == []
    neighbour.check()
