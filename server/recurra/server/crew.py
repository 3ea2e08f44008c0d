"""The worker processes: started, started again when they die, and ended in order."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, Self

from recurra.server.settings import VISIBLE
from recurra.server.telemetry import Log

QUICK_SECONDS: Final = 10.0  # a worker that served no longer than this failed quickly
MAX_QUICK_FAILURES: Final = 5  # in a row, then it is given up
MAX_PAUSE_SECONDS: Final = 5.0  # between two of them

_log = Log(__name__)
Refusals = Mapping[str, str]  # why, by the model's name


class WorkerFailed(RuntimeError):
    """A worker does not start, or keeps dying."""


class Orders(NamedTuple):
    """What a worker is told beside its settings: its number, who started it, and the models that were refused."""

    worker: int
    parent: int
    refused: Refusals

    def line(self) -> bytes:
        return json.dumps(self._asdict()).encode() + b"\n"

    @classmethod
    def of(cls, line: str) -> Self:
        told: dict[str, Any] = json.loads(line)
        return cls(**told)


class Worker:
    """One worker, and the next one in its place when it dies.

    Attributes:
        ready: set once it serves for the first time.
        number: from 1 on.
        device: the one GPU that it sees; empty for all that there are.

    """

    def __init__(self, number: int, environ: Mapping[str, str], device: str = "") -> None:
        self.ready: Final = asyncio.Event()
        self.number, self.device = number, device
        self._environ = {**environ, VISIBLE: device} if device else environ
        self._where = {"device": device} if device else {}
        self._name = f"worker {number}" + (f" on GPU {device}" if device else "")
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """Its process id; None while there is none."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def keep(self, refused: Refusals, again: Callable[[int], Awaitable[Refusals]]) -> None:
        """Keep it running until cancelled; the process is left to `end`. Raises WorkerFailed.

        `again` is told the id of a process that died, and gives the models that are refused by then.
        """
        failures = 0
        while True:
            process = self._process = await self._start(refused)
            served = await self._watch(process)
            failures = failures + 1 if served < QUICK_SECONDS else 0
            _log.warning(
                "worker.died",
                worker=self.number,
                pid=process.pid,
                status=process.returncode,
                quick_failures=failures,
                **self._where,
            )
            if not self.ready.is_set():
                raise WorkerFailed(f"{self._name} does not start: it ended with status {process.returncode}")
            if failures == MAX_QUICK_FAILURES:
                raise WorkerFailed(
                    f"{self._name} keeps dying, {failures} times in a row; the last with status {process.returncode}"
                )
            await asyncio.sleep(min(MAX_PAUSE_SECONDS, 0.1 * 2**failures) if failures else 0)
            refused = await again(process.pid)

    async def end(self, seconds: float) -> None:
        """SIGTERM, on which it drains, and SIGKILL after so long."""
        if self._process is None or self.pid is None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            _log.warning("worker.killed", worker=self.number, pid=self.pid, seconds=seconds)
            self._process.kill()
            await self._process.wait()

    async def _start(self, refused: Refusals) -> Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "recurra.server.worker"),
            stdin=PIPE,
            stdout=PIPE,
            env=os.environ | self._environ,
            start_new_session=True,  # the terminal's Ctrl-C is for the parent, which then ends its workers in order
        )
        assert process.stdin is not None
        process.stdin.write(Orders(self.number, os.getpid(), refused).line())
        process.stdin.close()
        return process

    async def _watch(self, process: Process) -> float:
        """How many seconds it served until it died."""
        assert process.stdout is not None
        clock, began = asyncio.get_running_loop().time, None
        if await process.stdout.readline():
            began = clock()
            self.ready.set()
            _log.info("worker.ready", worker=self.number, pid=process.pid, **self._where)
        await process.wait()
        return clock() - began if began is not None else 0.0
