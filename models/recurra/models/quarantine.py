"""A stranger's model is first loaded in a child process: a file can crash the runtime, fill the memory, or never end.

The child's verdict is kept on disk by the content of all files of the model and of the code that reads them, so that a
file is tried once. What passed is then loaded here as any other: the child hands back a verdict, and no data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from recurra.models.refusal import ModelRefused
from recurra.models.repository import load

_PACKAGES: Final = ("onnx", "onnxruntime", "onnxruntime-gpu", "numpy")
_BLOCK: Final = 2**20
_SHORT: Final = re.compile("alloc|[Mm]emory")  # the machine may have more of it another time


def clear(
    folder: Path,
    *,
    made_for: str = "cpu",
    cache: Path | None = None,
    timeout_seconds: float = 120,
    max_bytes: int = 16 * 2**30,
    begun: Callable[[subprocess.Popen[bytes]], object] = lambda _: None,
) -> None:
    """Loads the model in `folder` in a child process, on the CPU. Raises ModelRefused if that fails in any way.

    Args:
        folder: as `load` takes it.
        made_for: the provider that will run it, "cpu" or "cuda": its form of the graph is tried.
        cache: where verdicts are kept; None for nowhere, and so where it cannot be written.
        timeout_seconds: of wall-clock and of processor time.
        max_bytes: of address space, the libraries included.
        begun: is told the child, so that another thread can kill it.

    """
    kept = None
    with contextlib.suppress(OSError):  # a file that cannot be read: what it means is the child's to say
        kept = cache / f"{digest(folder)}-{made_for}-{max_bytes}.json" if cache else None
    verdict = _kept(kept) if kept else None
    if verdict is None:
        verdict = _try(folder, made_for, timeout_seconds, max_bytes, begun)
        if kept and not _SHORT.search(verdict):
            _keep(kept, verdict)
    if verdict:
        raise ModelRefused(verdict)


def digest(folder: Path) -> str:
    """A hex digest of all files in `folder`, their names among them, of this code, and of the packages' versions."""
    total = hashlib.sha256()
    for package in _PACKAGES:
        total.update(f"{package} {_version(package)}\n".encode())
    code = Path(__file__).parent
    files = [(code, path) for path in code.rglob("*.py")]
    # One by one, since a version may be a link to a folder: rglob would not follow it.
    files += [(folder, path) for each in folder.iterdir() for path in (each, *each.rglob("*"))]
    for root, path in sorted(each for each in files if each[1].is_file()):
        total.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                total.update(block)
    return total.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _kept(path: Path) -> str | None:
    """An earlier verdict; None if there is none, or none that can be read."""
    try:
        refused = json.loads(path.read_text("utf-8"))["refused"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return refused if isinstance(refused, str) else None


def _keep(path: Path, verdict: str) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({"refused": verdict}), "utf-8")
        draft.replace(path)


def _try(
    folder: Path,
    made_for: str,
    timeout_seconds: float,
    max_bytes: int,
    begun: Callable[[subprocess.Popen[bytes]], object],
) -> str:
    """Why the model is refused, empty if it is not. Raises ModelRefused if the child did not come to say so."""
    limits = [str(int(timeout_seconds) + 1), str(max_bytes)]
    command = [sys.executable, "-P", "-m", __spec__.name, str(folder), made_for, *limits]
    void, pipe = subprocess.DEVNULL, subprocess.PIPE
    try:
        with subprocess.Popen(command, stdin=void, stdout=pipe, stderr=pipe) as child:  # noqa: S603
            begun(child)
            try:
                said, complained = child.communicate(timeout=timeout_seconds)
            finally:
                child.kill()
    except OSError as error:
        raise ModelRefused(f"'{folder.name}' cannot be tried: no process can be started ({error})") from error
    except subprocess.TimeoutExpired:
        raise ModelRefused(
            f"'{folder.name}' took more than {timeout_seconds:g} s to load in a trial; if you trust it, raise "
            "--trial-seconds, or say --trial-seconds off"
        ) from None
    verdict = said.decode(errors="replace").strip().rpartition("\n")[2]
    try:
        return str(json.loads(verdict)["refused"])
    except (ValueError, KeyError, TypeError):
        last = complained.decode(errors="replace").strip().rpartition("\n")[2][:200]
        end = f"status {child.returncode}, {last}"
        if child.returncode < 0:
            end = f"signal {signal.Signals(-child.returncode).name}"
        raise ModelRefused(f"'{folder.name}' ends the process that loads it ({end}); do not serve it") from None


def _limit(what: int, amount: int) -> None:
    """Sets a limit of this process, where it has none that is lower: that one may not be raised."""
    hard = resource.getrlimit(what)[1]
    least = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(what, (least, least))


def main(folder: str, made_for: str, seconds: str, max_bytes: str) -> None:
    """What the child does."""
    _limit(resource.RLIMIT_CPU, int(seconds))
    _limit(resource.RLIMIT_AS, int(max_bytes))
    _limit(resource.RLIMIT_CORE, 0)
    refused = ""
    try:
        load(Path(folder), provider="cpu", made_for=made_for)
    except ModelRefused as error:
        refused = str(error)
    except MemoryError:
        refused = f"'{Path(folder).name}' needs more than {max_bytes} bytes of memory to load"
    print(f"\n{json.dumps({'refused': refused})}")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
