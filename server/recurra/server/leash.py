"""A process that ends when its parent does, however that one ends: the kernel sees to it. Linux only.

`python -m recurra.server.leash PARENT COMMAND...` becomes the command, which gets SIGTERM then.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def tie(parent: int, number: signal.Signals) -> None:
    """Give this process the signal `number` once the thread that started it, of the process `parent`, is gone.

    An exec keeps it, a fork does not. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(ctypes.c_int(_PR_SET_PDEATHSIG), ctypes.c_ulong(number)):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if os.getppid() != parent:  # it was gone before
        os.kill(os.getpid(), number)


def command(*words: str) -> list[str]:
    """What to start in place of the command `words`, so that it ends with this process."""
    assert __spec__ is not None
    return [sys.executable, "-P", "-m", __spec__.name, str(os.getpid()), *words]


if __name__ == "__main__":
    tie(int(sys.argv[1]), signal.SIGTERM)
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606
