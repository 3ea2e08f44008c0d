"""What `choose` gives, found by a process that ends: with it ends what it took of the GPU's memory.

For who runs no model itself: a process that has once run a node on a GPU keeps a context there.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import cache
from typing import Final

from recurra.models import provider
from recurra.models.provider import Choice

_SECONDS: Final = 120  # a cold GPU and its libraries take a few


def choose(asked: str) -> Choice:
    """As `recurra.models.choose`."""
    return provider.choose(asked, _failure)


@cache
def _failure(name: str) -> str:
    """Why the runtime's provider does not run one node alone, empty if it does."""
    command = [sys.executable, "-P", "-m", __spec__.name, name]
    try:
        child = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
        )
    except OSError as error:
        return f"{name} cannot be tried: no process can be started ({error})"
    except subprocess.TimeoutExpired:
        return f"{name} did not run a node within {_SECONDS} s"
    said = child.stdout.decode(errors="replace").strip().rpartition("\n")[2]
    try:
        return str(json.loads(said)["failure"])
    except (ValueError, KeyError, TypeError):
        last = child.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        end = f"status {child.returncode}, {last}"
        if child.returncode < 0:
            end = f"signal {signal.Signals(-child.returncode).name}"
        return f"{name} ends the process that tries it ({end})"


if __name__ == "__main__":
    print(f"\n{json.dumps({'failure': provider.failure(sys.argv[1])})}")  # noqa: T201
