"""Several processes on one port: this one owns the port's name, the store and the trials, and watches over the others.

A worker is a server of its own on the shared store; the kernel gives each a share of the connections (SO_REUSEPORT).
See docs/decisions/0010.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import cycle
from typing import Final

from recurra.models import elsewhere
from recurra.server.app import Ended, chosen, opened
from recurra.server.crew import Refusals, Worker, WorkerFailed
from recurra.server.port import reserved
from recurra.server.settings import PREFIX, Settings
from recurra.server.tasks import owned, stop
from recurra.server.telemetry import Log
from recurra.server.totals import Totals, totals
from recurra.server.trials import refusals

_GRACE_SECONDS: Final = 5.0  # for a worker to end after its drain
_log = Log(__name__)


@asynccontextmanager
async def running(settings: Settings, ending: asyncio.Future[None]) -> AsyncIterator[str]:
    """As app.running, by `settings.workers` processes; all of them are ready inside the block."""
    if sys.platform != "linux":
        raise WorkerFailed("several workers run on Linux only: use --workers 1")
    choice = await chosen(settings, elsewhere.choose)
    crew: list[Worker] = []
    async with AsyncExitStack() as stack:
        address = stack.enter_context(reserved(settings.listen))
        metrics = _metrics(settings, crew, stack)
        url = await opened(settings, stack, ending, tied=True)
        refused = await refusals(settings, ending, {})
        theirs = replace(settings, listen=address, store=url, devices=(), metrics=None, trial_seconds=None)
        # What is chosen: a worker whose GPU does not work fails, and does not serve on the CPU beside the others.
        environ = theirs.variables() | {PREFIX + "PROVIDER": choice.provider} | (metrics.environ if metrics else {})
        devices = cycle(settings.devices or ("",))
        crew += [Worker(number, environ, next(devices)) for number in range(1, settings.workers + 1)]

        async def again(pid: int) -> Refusals:
            if metrics:
                metrics.forget(pid)
            return await refusals(settings, ending, refused)  # there may be other files by now

        keeping = [owned(worker.keep(refused, again), "workers", ending) for worker in crew]
        stack.push_async_callback(_end, crew, keeping, settings.drain_seconds + _GRACE_SECONDS)
        ready = asyncio.create_task(_ready(crew))
        await asyncio.wait((ready, ending), return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            await stop([ready])
            await ending
            raise Ended
        _log.info("server.ready", address=address, workers=len(crew), refused=len(refused))
        yield address


def _metrics(settings: Settings, crew: list[Worker], stack: AsyncExitStack) -> Totals | None:
    if settings.metrics is None:
        return None
    serving = stack.enter_context(totals(settings.metrics, crew))
    _log.info("metrics.ready", address=serving.address)
    return serving


async def _ready(crew: list[Worker]) -> None:
    for worker in crew:
        await worker.ready.wait()


async def _end(crew: list[Worker], keeping: list[asyncio.Task[None]], seconds: float) -> None:
    await stop(keeping)  # none is started again
    await asyncio.gather(*(worker.end(seconds) for worker in crew))
