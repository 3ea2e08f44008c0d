"""Which of ONNX Runtime's providers runs a model: what is asked for, and what this machine can do.

The runtime lists providers that it was built with, GPU or no GPU: whether one works is found by running a node on it.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from recurra.models.refusal import ModelRefused

# What creating or running a session may raise.
ERRORS: Final[tuple[type[Exception], ...]] = (
    *(each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception)),
    RuntimeError,
    ValueError,
)
CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
PROVIDERS: Final = ("auto", "cuda", "tensorrt", "cpu")
# Of what belongs to no session. Warnings are left out: on CUDA each ScatterND warns of places that stand twice. Of ours
# only SCRATCH does, which rows that fill up a batch write, and where it does not matter who comes last.
_SEVERITY: Final = 3
_ENGINES: Final = "~/.cache/recurra/tensorrt"
_GPU: Final = {"cuda": CUDA, "tensorrt": TENSORRT}


onnxruntime.set_default_logger_severity(_SEVERITY)


class NoGpu(ModelRefused):
    """A provider is asked for that does not work on this machine."""


class Choice(NamedTuple):
    """One of PROVIDERS but "auto", and why."""

    provider: str
    reason: str


def choose(provider: str, failing: Callable[[str], str] | None = None) -> Choice:
    """What one of PROVIDERS means on this machine. Raises NoGpu where it is a GPU's, and does not work here.

    `failing`: what to ask in place of `failure`, which runs a node in this process.
    """
    if provider not in PROVIDERS:
        raise ModelRefused(f"there is no provider '{provider}'; use one of {', '.join(PROVIDERS)}")
    if provider == "cpu":
        return Choice("cpu", "it is asked for")
    name = _GPU.get(provider, CUDA)
    reason = (failing or failure)(name)
    if provider == "auto":
        return Choice("cpu", f"no GPU can be used: {reason}") if reason else Choice("cuda", f"a node ran on {name}")
    if reason:
        more = " and tensorrt-cu13<11" if provider == "tensorrt" else ""
        needs = f"NVIDIA's driver (in a container, its Container Toolkit too) and recurra[server-gpu]{more}"
        raise NoGpu(f"no GPU can be used ({reason}); it takes {needs}, or use --provider cpu")
    return Choice(provider, f"a node ran on {name}")


def stack(
    provider: str,
    *,
    tf32: bool = False,
    cuda: Mapping[str, str] | None = None,
    profiles: Mapping[str, str] | None = None,
) -> list[Any]:
    """The runtime's providers with their options, in order of preference, for what `choose` gave.

    Args:
        provider: as `choose` gave it.
        tf32: see Session.
        cuda: further options of the CUDA provider.
        profiles: TensorRT's: the sizes that an engine is built for.

    """
    options = {  # "HEURISTIC": an exhaustive search is made again for each new shape
        "use_tf32": str(int(tf32)),
        "cudnn_conv_algo_search": "HEURISTIC",
        **(cuda or {}),
    }
    preferred: list[Any] = [] if provider == "cpu" else [(CUDA, options)]
    if provider == "tensorrt":
        kept: dict[str, str] = {}
        for what in ("engine", "timing"):  # building an engine takes minutes
            kept |= {f"trt_{what}_cache_enable": "1", f"trt_{what}_cache_path": str(Path(_ENGINES).expanduser())}
        preferred = [(TENSORRT, kept | dict(profiles or {})), *preferred]
    return [*preferred, CPU]


def options(threads: int = 1) -> onnxruntime.SessionOptions:
    """Of a session whose runs use so many threads."""
    made = onnxruntime.SessionOptions()
    # Concurrency comes from models and replicas; threads that spin burn eight times the CPU.
    made.intra_op_num_threads = threads
    made.inter_op_num_threads = 1
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    made.log_severity_level = 4
    return made


def _no_driver() -> str:
    """That there is none; the runtime only says that its nodes are left to the CPU."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"there is no NVIDIA driver: {error}"
    return ""


def _told(error: Exception) -> str:
    """What the runtime says, without the places in its source that stand before and after it."""
    first = str(error).strip().splitlines()[0]
    if first.startswith("/"):  # a path, a signature, and perhaps the types of a template
        first = re.split(r"[)\]] (?=[A-Z])", first)[-1].partition(" ; ")[0]
    return first[:300]


@cache
def failure(name: str) -> str:
    """Why the runtime's provider does not run one node alone, empty if it does."""
    if name not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no {name}"
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "probe", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    alone = options()
    alone.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    printed = io.StringIO()
    onnxruntime.set_default_logger_severity(4)  # a missing GPU is no error: it is told once, by who asked
    try:
        with contextlib.redirect_stdout(printed):
            onnxruntime.preload_dlls()
        session = onnxruntime.InferenceSession(model.SerializeToString(), alone, providers=[name], enable_fallback=0)
        found = session.run(None, {"x": np.ones(1, np.float32)})[0].tolist() if name in session.get_providers() else []
    except ERRORS as error:
        return next(iter(printed.getvalue().splitlines()), "") or _no_driver() or _told(error)
    finally:
        onnxruntime.set_default_logger_severity(_SEVERITY)
    return "" if found == [2.0] else f"{name} did not run a node"
