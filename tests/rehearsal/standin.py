"""Stand-ins for the libraries of CUDA: they compute nothing and write down each call.

Built from the C files in `libraries` into the environment that has CUDA's headers (`make rehearse` makes it). What a
library needs and no file has is a function that does nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

HEADERS: Final = Path(sys.prefix) / "headers" / "nvidia" / "cu13" / "include"
LOG: Final = "STANDIN_LOG"  # the variable that names the file of calls
_BUILT: Final = Path(sys.prefix) / "standin"
_SOURCES: Final = Path(__file__).with_name("libraries")
_STUB: Final = '__attribute__((weak)) int {0}() {{ standin_log("{0}"); return 0; }}\n'
_SHARED: Final = "libstandin.so"
_CUDNN, _DRIVER, _RANDOM = "libcudnn.so.9", "libcuda.so.1", "libcurand.so.10"


def load() -> ctypes.CDLL:
    """Have this process use them from now on; the part that they share: see standin.c."""
    folder = built()
    for library in sorted(folder.glob("*.so*"), key=lambda path: path.name != _SHARED):
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # whoever asks for one by name gets it
    return ctypes.CDLL(str(folder / _SHARED))


@cache
def built() -> Path:
    """The folder with the libraries, which is made if it is not there."""
    provider = _provider()
    digest = hashlib.sha256(str((provider, provider.stat().st_size, provider.stat().st_mtime_ns)).encode())
    for source in [Path(__file__), *sorted(_SOURCES.iterdir())]:
        digest.update(source.read_bytes())
    folder = _BUILT / digest.hexdigest()[:12]
    if not folder.is_dir():
        missing = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
        if missing:
            raise RuntimeError(f"the stand-ins need {' and '.join(missing)}: on Debian, apt-get install gcc libc6-dev")
        shutil.rmtree(_BUILT, ignore_errors=True)
        _BUILT.mkdir()
        making = Path(tempfile.mkdtemp(dir=_BUILT))
        _build(making, provider)
        making.rename(folder)
    return folder


def _provider() -> Path:
    """The library of ONNX Runtime's CUDA provider. The runtime is not loaded for it."""
    found = importlib.util.find_spec("onnxruntime")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"


def _build(folder: Path, provider: Path) -> None:
    _compile(folder, _SHARED, [_SOURCES / "standin.c"], [])
    for library, names in _needed(provider).items():
        stem = library.split(".")[0].removeprefix("lib")
        rest, versions, own = folder / f"{stem}.c", folder / f"{stem}.map", _SOURCES / f"{stem}.c"
        rest.write_text("void standin_log(const char *, ...);\n" + "".join(map(_STUB.format, sorted(names))))
        versions.write_text(f"{library} {{ global: *; }};\n")  # symbols are asked for with their library's name
        flags = [f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}", f"-L{folder}", "-lstandin"]
        _compile(folder, library, [rest, *([own] if own.exists() else [])], [*flags, "-Wl,-rpath,$ORIGIN"])


def _needed(provider: Path) -> dict[str, set[str]]:
    """What the provider takes from each library: by the linker, or by name while it runs."""
    listed = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", provider], capture_output=True, text=True, check=True
    ).stdout
    found = {_RANDOM: {"curandCreateGenerator"}, _DRIVER: {"cuInit", "cuDeviceGet", "cuTensorMapEncodeTiled"}}
    for name, library in re.findall(r"(\w+)@(lib(?:cudart|cublas|cublasLt|curand)\.so\.\d+)", listed):
        found.setdefault(library, set()).add(name)
    found[_CUDNN] = {name.decode() for name in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes())}
    return found


def _compile(folder: Path, library: str, sources: list[Path], flags: list[str]) -> None:
    places = [f"-I{_SOURCES}", f"-I{HEADERS}"]
    command = ["gcc", "-w", "-O1", "-fPIC", "-shared", "-pthread", *places, *map(str, sources)]
    subprocess.run([*command, "-o", str(folder / library), *flags], check=True)
