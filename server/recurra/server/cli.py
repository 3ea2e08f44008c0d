"""`recurra serve`: settings in, one line with the address out, then serving until told to stop."""

from __future__ import annotations

import asyncio
import os
import sys

from recurra.server import app, workers
from recurra.server.settings import VISIBLE, Settings
from recurra.server.telemetry import Log, configure
from recurra.wire.errors import RecurraError

_log = Log(__name__)


def serve(argv: list[str]) -> int:
    """Run the server; the exit status."""
    settings = Settings.parse(argv, os.environ)
    configure(settings.log_level, settings.log_format)
    _log.info("server.starting", **{name: str(value) for name, value in settings.public().items()})
    if settings.devices:
        os.environ[VISIBLE] = settings.devices[0]  # nothing has asked CUDA yet; a worker is told its own
    return run(settings, app.running if settings.workers == 1 else workers.running)


def run(settings: Settings, running: app.Running) -> int:
    """Serve until told to stop; the exit status."""
    try:
        asyncio.run(app.serve(settings, _ready, running))
    except (OSError, RuntimeError, RecurraError) as error:
        sys.stderr.write(f"recurra serve: {error}\n")
        return 1
    return 0


def _ready(address: str) -> None:
    sys.stdout.write(f"recurra is ready on {address}\n")
    sys.stdout.flush()
