"""Tasks that a server is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

from recurra.server.telemetry import Log

_log = Log(__name__)


def owned(work: Coroutine[Any, Any, None], name: str, ending: asyncio.Future[None]) -> asyncio.Task[None]:
    """A task without which the server cannot go on."""
    task = asyncio.create_task(work, name=name)

    def ended(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not ending.done():
            _log.error("task.failed", task=name, error=error)
            ending.set_exception(error)

    task.add_done_callback(ended)
    return task


async def stop(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel the tasks, and wait until they are done."""
    tasks = [*tasks]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
