"""These tests run in the environment that `make rehearse` makes: there, all that uses CUDA is rehearsed."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.rehearsal import rehearsal, standin
from tests.rehearsal.calls import Log

REHEARSED: Final = standin.HEADERS.is_dir()
collect_ignore_glob = [] if REHEARSED else ["test_*"]
if REHEARSED:
    _folder = tempfile.TemporaryDirectory()
    os.environ |= {standin.LOG: str(Path(_folder.name) / "calls")} | rehearsal.environment()
    _shared = rehearsal.begin()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(
        "A rehearsal on stand-in libraries: where nodes run and what crosses the bus. No number and no time is a GPU's."
    )


@pytest.fixture(scope="session")
def log() -> Log:
    """The calls of this process."""
    return Log(Path(os.environ[standin.LOG]))


@pytest.fixture
def shared() -> Iterator[ctypes.CDLL]:
    """What the stand-in libraries share, with its gate: see standin.c."""
    yield _shared
    _shared.standin_open()
