"""`recurra serve` whose clock a file steps: eight bytes, seconds that are added to the time."""

from __future__ import annotations

import mmap
import struct
import sys
from pathlib import Path

from recurra.server import app
from recurra.server.cli import serve


class SteppedClock(app.SystemClock):
    """Real time, and what is in the file."""

    def __init__(self) -> None:
        with Path(sys.argv[1]).open("rb") as file:
            self._ahead = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)

    def time(self) -> float:
        [seconds] = struct.unpack("<d", self._ahead[:8])
        return super().time() + float(seconds)


if __name__ == "__main__":
    app.SystemClock = SteppedClock  # type: ignore[misc]
    sys.exit(serve(sys.argv[2:]))
