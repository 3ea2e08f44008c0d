"""The trials of models, before a server loads them: each in a process of its own."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from recurra import models
from recurra.models import elsewhere, quarantine
from recurra.server.settings import Settings
from recurra.server.telemetry import Log

_log = Log(__name__)
Choose = Callable[[str], models.Choice]


async def attempt(
    folder: Path, settings: Settings, ending: asyncio.Future[None], choose: Choose = models.choose
) -> None:
    """Try the model in `folder`, if the settings say so; once `ending` is done its trial is ended. Raises ModelRefused.

    An earlier verdict on the same files is kept in the settings' cache, and taken.
    """
    if settings.trial_seconds is None:
        return
    loop = asyncio.get_running_loop()

    def begun(child: subprocess.Popen[bytes]) -> None:
        loop.call_soon_threadsafe(ending.add_done_callback, lambda _: child.kill())

    await asyncio.to_thread(
        quarantine.clear,
        folder,
        made_for=await asyncio.to_thread(_made_for, folder, settings.provider, choose),
        cache=settings.cache,
        timeout_seconds=settings.trial_seconds,
        begun=begun,
    )


def _made_for(folder: Path, provider: str, choose: Choose) -> str:
    return "cpu" if choose(models.wanted(folder, provider)).provider == "cpu" else "cuda"


async def refusals(settings: Settings, ending: asyncio.Future[None], known: Mapping[str, str]) -> dict[str, str]:
    """Why each model that cannot be served is refused, by name; what is `known` is not tried again.

    It is found without taking any of a GPU's memory in this process.
    """
    refused = dict(known)
    for name, folder in models.find(settings.models).items():
        if ending.done():
            break
        try:
            if name not in known:
                await attempt(folder, settings, ending, elsewhere.choose)
        except models.ModelRefused as error:
            if not ending.done():
                refused[name] = str(error)
                _log.error("model.refused", model=name, error=error)
    return refused
