"""What tests of the whole service share: a model repository, and real servers that serve it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings

from tests.service import zoo
from tests.service.caller import Caller
from tests.service.processes import READY_SECONDS, ServerProcess, ValkeyProcess

settings.register_profile("recurra", deadline=None)  # machines are noisy: no test asserts a time
settings.load_profile("recurra")

StartServer = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository: the models of tests/service/zoo.py."""
    return zoo.lay_out(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the embedded store, for all tests that leave it as it was; `.address` is where it serves."""
    process = ServerProcess(repository, tmp_path_factory.mktemp("data"))
    try:
        yield process.start()
    finally:
        process.close()


@pytest.fixture
def start_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts servers of the test's own: start_server("--slots", "4", data=..., store=...)."""
    with ExitStack() as stack:

        def start(
            *flags: str,
            models: Path = repository,
            data: Path | None = None,
            store: str = "",
            seconds: float = READY_SECONDS,
        ) -> ServerProcess:
            process = ServerProcess(models, data or tmp_path_factory.mktemp("data"), *flags, store=store)
            stack.callback(process.close)
            return process.start(seconds)

        yield start


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """A store without a server."""
    process = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def caller(server: ServerProcess) -> Iterator[Caller]:
    """A client of `server`, down at the wire."""
    with Caller(server.address) as caller:
        yield caller


@pytest.fixture
def session(request: pytest.FixtureRequest, _numbers: Iterator[int]) -> str:
    """The name of a session that nobody has used."""
    return f"{request.node.name[:40]} {next(_numbers)}"


@pytest.fixture(scope="session")
def _numbers() -> Iterator[int]:
    return count()
