"""ONNX Runtime sessions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np
import onnxruntime

from recurra.models.provider import CPU, ERRORS, choose, options, stack
from recurra.models.refusal import ModelRefused
from recurra.models.signature import Array

_OUTLIER = 8  # times the bytes of the run that follows


class Assigned(NamedTuple):
    """A node of the graph as the runtime tells of it, and the provider that runs it."""

    provider: str
    op: str
    name: str


class Session:
    """A graph made ready on a provider.

    Attributes:
        model: the graph.
        inputs, outputs: names in the graph's order.
        providers: the runtime's, in order of preference.
        assigned: which node is run by which provider.
        nodes: how many nodes each provider got.
        threads: that one run uses.

    """

    def __init__(
        self,
        model: bytes,
        provider: str,
        threads: int = 1,
        *,
        tf32: bool = False,
        cuda_graphs: bool = False,
        profiles: Mapping[str, str] | None = None,
    ) -> None:
        """Raises ModelRefused if the runtime refuses the graph, or `provider` does not work here.

        Args:
            model: the graph.
            provider: one of PROVIDERS.
            threads: that one run uses.
            tf32: products on a GPU may round their inputs to 10 bits.
            profiles: the sizes that TensorRT builds an engine for.
            cuda_graphs: a run that is bound with a number is recorded, and played from then on.

        """
        told = options(threads)
        told.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self.model, self.threads = model, threads
        self._asked = provider, threads, tf32
        more = {"enable_cuda_graph": "1"} if cuda_graphs else {}
        providers = stack(choose(provider).provider, tf32=tf32, cuda=more, profiles=profiles)
        try:
            self._session = onnxruntime.InferenceSession(model, told, providers=providers, enable_fallback=0)
        except ERRORS as error:
            raise ModelRefused(f"ONNX Runtime does not load the graph: {error}") from error
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self.assigned = tuple(self._assignment())
        self.nodes: dict[str, int] = dict(Counter(node.provider for node in self.assigned))
        self._largest = 0  # bytes fed to one run since the arena was shrunk

    def another(self, model: bytes, *, cuda_graphs: bool = False, profiles: Mapping[str, str] | None = None) -> Self:
        """A session of another graph, on the same terms."""
        provider, threads, tf32 = self._asked
        return type(self)(model, provider, threads, tf32=tf32, cuda_graphs=cuda_graphs, profiles=profiles)

    @property
    def on_gpu(self) -> bool:
        """Whether the GPU is preferred."""
        return self.providers[0] != CPU

    @property
    def exact(self) -> bool:
        """Whether products are made of whole 32-bit numbers."""
        return not (self.on_gpu and self._asked[2])

    def run(self, outputs: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """The named outputs. The runtime's exceptions, one of ERRORS, are the caller's.

        The arena keeps the memory of the largest run; the first run that is far smaller gives it back.
        """
        size = sum([array.nbytes for array in feed.values()])
        shrink = size * _OUTLIER < self._largest and not self.on_gpu
        self._largest = size if shrink else max(size, self._largest)
        results: list[Array] = self._session.run(outputs, feed, _shrinking() if shrink else None)
        return results

    def close(self) -> None:
        """Give the memory back: it is not run any more; others like it may still be made."""
        del self._session

    def buffer(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """Memory of the device that the graph runs on, of any content."""
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype.newbyteorder("="), self._device, 0)

    def bound(self, number: int = 0) -> Bound:
        """To run with inputs and outputs that are bound once; `number`: of its own, for a run that is recorded."""
        return Bound(self._session, self.buffer, number)

    @property
    def _device(self) -> str:
        return "cuda" if self.on_gpu else "cpu"

    def _assignment(self) -> list[Assigned]:
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            return []
        parts = self._session.get_provider_graph_assignment_info()
        return [Assigned(part.ep_name, node.op_type, node.name) for part in parts for node in part.get_nodes()]


class Bound:
    """Inputs and outputs of runs, bound to memory that is used again by each."""

    def __init__(self, session: onnxruntime.InferenceSession, buffer: Callable[..., Any], number: int) -> None:
        """`buffer`: makes memory of a shape and a dtype on the device. `number`: see Session.bound."""
        self._session, self._buffer, self._options = session, buffer, _recorded(number) if number else None
        self._io = session.io_binding()
        self._fed: dict[str, Any] = {}
        self._told: list[bool] = []  # by output: whether it is for the host

    def take(self, name: str, buffer: Any) -> None:
        """An input from a buffer."""
        self._io.bind_ortvalue_input(name, buffer)

    def give(self, name: str, buffer: Any = None, *, tell: bool = False) -> None:
        """An output into a buffer, and if that is to be told to the host too; None: to the host."""
        if buffer is None:
            self._io.bind_output(name, "cpu")
        else:
            self._io.bind_ortvalue_output(name, buffer)
        self._told.append(tell or buffer is None)

    def feed(self, name: str, array: Array) -> None:
        """An input, to the device; of the same shape at every call."""
        if name not in self._fed:
            self._fed[name] = self._buffer(array.shape, array.dtype)
            self.take(name, self._fed[name])
        self._fed[name].update_inplace(np.ascontiguousarray(array))

    def lend(self, name: str, array: Array) -> None:
        """An input of this run, to where the graph wants it."""
        self._io.bind_cpu_input(name, array)

    def run(self) -> list[Array]:
        """The outputs that go to the host: views that the next run overwrites."""
        self._session.run_with_iobinding(self._io, self._options)
        outputs = zip(self._io.get_outputs(), self._told, strict=True)
        return [value.numpy() for value, told in outputs if told]


def _recorded(number: int) -> onnxruntime.RunOptions:
    made = onnxruntime.RunOptions()
    made.add_run_config_entry("gpu_graph_id", str(number))
    return made


@cache
def _shrinking() -> onnxruntime.RunOptions:
    made = onnxruntime.RunOptions()
    made.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return made
