"""One of the processes that `recurra serve --workers` starts: the whole server but its port, store and trials.

Its settings are its variables, the rest is one line on its standard input. It prints a line when it is ready, and is
killed with the process that started it.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial

from recurra.server import app, cli, leash
from recurra.server.crew import Orders
from recurra.server.settings import Settings
from recurra.server.telemetry import configure


def main() -> int:
    """Serve as ordered; the exit status."""
    orders = Orders.of(sys.stdin.readline())
    leash.tie(orders.parent, signal.SIGKILL)
    settings = Settings.parse([], os.environ)
    configure(settings.log_level, settings.log_format, worker=orders.worker)
    return cli.run(settings, partial(app.running, refused=orders.refused))


if __name__ == "__main__":
    sys.exit(main())
