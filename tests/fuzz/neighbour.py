"""Who is served beside a fuzz, and looks after the server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Self

import numpy as np

from recurra.client import Client
from tests.service.processes import ServerProcess, eventually
from tests.service.zoo import CLOSE, MODELS

LSTM: Final = MODELS["lstm"]
_MOST_BYTES: Final = 256 << 20  # that the server may hold more than when it began
_MOST_SOCKETS: Final = 16  # that may stay open a while: hypothesis' own channels
_FAULTS: Final = ("request.failed", "task.failed", "Traceback")  # in the log: an error that nobody foresaw


class Neighbour:
    """A session that steps on, each reply compared with the model's own."""

    def __init__(self, server: ServerProcess) -> None:
        self._server, self._client = server, Client(server.address)
        self._session = self._client.session("lstm", "neighbour")
        self._state, self._steps = LSTM.fresh, 0
        self._bytes = self._sockets = self._read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def step(self) -> None:
        """Three timesteps more; where a call of theirs is turned away, the SDK makes it again."""
        x = LSTM.draw(self._steps, 3)
        y, *state = LSTM.run(x, *self._state)
        np.testing.assert_allclose(self._session.predict(x), y, **CLOSE)
        self._state, self._steps = tuple(state), self._steps + 3

    def settle(self) -> None:
        """What the server holds now is what it may hold."""
        self._bytes, self._sockets = self.resident(), self._open()
        self._read = len(self._server.log)

    def check(self) -> None:
        """The server is as it was."""
        assert self._server.process is not None
        assert self._server.process.poll() is None, self._server.log[-2000:]
        self.step()
        eventually(lambda: self._open() <= self._sockets + _MOST_SOCKETS)
        grown = self.resident() - self._bytes
        assert grown < _MOST_BYTES, f"{grown >> 20} MiB more than at the start"

    def failures(self) -> list[str]:
        """What the server logged of errors that it had not foreseen, since this was asked last."""
        log = self._server.log
        new, self._read = log[self._read :], len(log)
        return [line for line in new.splitlines() if any(fault in line for fault in _FAULTS)]

    def resident(self) -> int:
        """Bytes of memory."""
        assert self._server.process is not None
        pages = Path(f"/proc/{self._server.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def _open(self) -> int:
        """Descriptors."""
        assert self._server.process is not None
        return len(list(Path(f"/proc/{self._server.process.pid}/fd").iterdir()))
