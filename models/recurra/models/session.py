"""ONNX Runtime sessions: the only module here that sees it."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from recurra.models.refusal import ModelRefused
from recurra.models.signature import Array

# What creating or running a session may raise.
ERRORS: Final[tuple[type[Exception], ...]] = (
    *(each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception)),
    RuntimeError,
    ValueError,
)
PROVIDERS: Final = ("auto", "cuda", "cpu")
_CUDA: Final = "CUDAExecutionProvider"
_CPU: Final = "CPUExecutionProvider"
_OUTLIER: Final = 8  # times the bytes of the run that follows
_CUDA_OPTIONS: Final = {"use_tf32": "0"}  # parity with the CPU is promised


class Session:
    """A graph made ready on a provider.

    Attributes:
        inputs, outputs: names in the graph's order.
        providers: the runtime's, in order of preference.
        nodes: how many nodes each provider got.
        threads: that one run uses.

    """

    def __init__(self, model: bytes, provider: str, threads: int = 1) -> None:
        """Raises ModelRefused if the runtime refuses the graph, or `provider` is "cuda" and there is no GPU."""
        options = _options(threads)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        on_gpu = choose(provider) == "cuda"
        providers: list[Any] = [(_CUDA, _CUDA_OPTIONS), _CPU] if on_gpu else [_CPU]
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
        except ERRORS as error:
            raise ModelRefused(f"ONNX Runtime does not load the graph: {error}") from error
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self.nodes = self._placement()
        self.threads = threads
        self._largest = 0  # bytes fed to one run since the arena was shrunk

    @property
    def on_gpu(self) -> bool:
        """Whether the GPU is preferred."""
        return _CUDA in self.providers

    def run(self, outputs: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """The named outputs. The runtime's exceptions, one of ERRORS, are the caller's.

        The arena keeps the memory of the largest run; the first run that is far smaller gives it back.
        """
        size = sum([array.nbytes for array in feed.values()])
        shrink = size * _OUTLIER < self._largest and not self.on_gpu
        self._largest = size if shrink else max(size, self._largest)
        results: list[Array] = self._session.run(outputs, feed, _shrinking() if shrink else None)
        return results

    def _placement(self) -> dict[str, int]:
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            return {}
        counts = Counter[str]()
        for part in self._session.get_provider_graph_assignment_info():
            counts[part.ep_name] += len(part.get_nodes())
        return dict(counts)


def choose(provider: str) -> str:
    """Either "cuda" or "cpu", for one of PROVIDERS. Raises ModelRefused if "cuda" is asked for and there is no GPU."""
    if provider not in PROVIDERS:
        raise ModelRefused(f"there is no provider '{provider}'; use one of {', '.join(PROVIDERS)}")
    if provider == "cpu":
        return "cpu"
    failure = _gpu_failure()
    if failure and provider == "cuda":
        raise ModelRefused(f"no GPU can be used ({failure}); install recurra[server-gpu], or use --provider cpu")
    return "cpu" if failure else "cuda"


@cache
def _gpu_failure() -> str:
    """Why no GPU runs one node, empty if one does. The runtime lists CUDA where there is none, so it is tried."""
    if _CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA provider"
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "probe", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = _options()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    printed = io.StringIO()
    onnxruntime.set_default_logger_severity(4)  # a missing GPU is no error: it is told once, below
    try:
        with contextlib.redirect_stdout(printed):
            onnxruntime.preload_dlls()
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=[(_CUDA, _CUDA_OPTIONS)], enable_fallback=0
        )
    except ERRORS as error:
        return (printed.getvalue() or str(error)).strip().splitlines()[0][:300]
    finally:
        onnxruntime.set_default_logger_severity(2)
    return "" if _CUDA in session.get_providers() else "the CUDA provider did not start"


@cache
def _shrinking() -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _options(threads: int = 1) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    # Concurrency comes from models and replicas; threads that spin burn eight times the CPU.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    return options
