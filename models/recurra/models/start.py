"""The second graph of an encoder-decoder model: from a whole source to the states that its session starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto

from recurra.models import source
from recurra.models.graph import data_inputs, dims_of, dtype_of
from recurra.models.layout import Layout
from recurra.models.prepare import bounds
from recurra.models.provider import ERRORS
from recurra.models.refusal import ModelRefused
from recurra.models.samples import Samples
from recurra.models.session import Session
from recurra.models.signature import Array, Signature, TensorSpec

_SIZES = (3, 5)  # of free axes, when it is tried


class Start:
    """A `start.onnx`, run for one session at a time. Any one thread may run it.

    Attributes:
        inputs: what it takes, without the batch axis; sizes that may be any are None.

    """

    def __init__(self, model: ModelProto, layout: Layout, beside: Session) -> None:
        """Runs on the terms of the session that it is `beside`.

        Raises ModelRefused for outputs that are no states of `layout`, and for a graph that does not run.
        """
        self._session = beside.another(model.SerializeToString())
        self.inputs = _inputs(model.graph)
        self._states = [_state(name, layout) for name in self._session.outputs]
        self._specs = [port.spec for port in layout.states]
        self._fresh = {index: spec.fresh[None] for index, spec in enumerate(layout.signature().states)}
        if len(set(self._states)) < len(self._states):
            raise ModelRefused("start.onnx gives one state twice; give each state one output")
        for size in _SIZES:
            self._try(size)

    def run(self, inputs: Sequence[Array]) -> dict[int, Array]:
        """All states that one session starts from, each (1, *shape), by index: fresh where the graph makes none.

        Args:
            inputs: in order, each (1, *shape).

        Raises:
            ValueError: a state comes out of another size, or holds a NaN or an infinity.
            ONNX Runtime's exceptions pass through.

        """
        fed = {spec.name: array for spec, array in zip(self.inputs, inputs, strict=True)}
        found = dict(self._fresh)
        for index, array in zip(self._states, self._session.run(self._session.outputs, fed), strict=True):
            spec = self._specs[index]
            if _plain(array.shape) != _plain(spec.shape) or array.dtype != spec.dtype:
                raise ValueError(
                    f"start.onnx gives state '{spec.name}' as {array.dtype} of shape {list(array.shape)}; it is "
                    f"{spec.dtype} of shape {list(spec.shape)}"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"start.onnx gives a NaN or an infinity for state '{spec.name}'")
            found[index] = np.ascontiguousarray(array).reshape(1, *spec.shape)
        return found

    def _try(self, size: int) -> None:
        shapes = tuple(
            TensorSpec(each.name, each.dtype, tuple(free or size for free in each.shape), False, each.bounds)
            for each in self.inputs
        )
        try:
            self.run(Samples(Signature(shapes, (), ())).inputs(1, 1))
        except ERRORS as error:
            raise ModelRefused(f"start.onnx does not run: {' '.join(str(error).split())[:400]}") from error


def read(path: Path, sha256: str | None, layout: Layout, beside: Session) -> Start | None:
    """The start graph in `path`, None if none is there or due. Raises ModelRefused as `source.read` and Start do."""
    return Start(source.read(path, sha256), layout, beside) if path.exists() or sha256 else None


def _inputs(graph: GraphProto) -> tuple[TensorSpec, ...]:
    limits, specs = bounds(graph), []
    for value in data_inputs(graph):
        dims = dims_of(value)
        if not dims or (isinstance(dims[0], int) and dims[0] != 1):
            raise ModelRefused(f"start.onnx: input '{value.name}' needs a batch axis in front, free or of size 1")
        shape = tuple(size if isinstance(size, int) else None for size in dims[1:])
        specs.append(TensorSpec(value.name, dtype_of(value), shape, False, limits.get(value.name)))
    if not specs:
        raise ModelRefused("start.onnx has no input")
    return tuple(specs)


def _state(name: str, layout: Layout) -> int:
    """Which state an output is: it has its name, or that of the graph input that takes it."""
    for index, port in enumerate(layout.states):
        if name in (port.spec.name, port.input):
            return index
    known = ", ".join(f"'{port.spec.name}'" for port in layout.states)
    raise ModelRefused(
        f"start.onnx: output '{name}' is no state of model.onnx; call its outputs as the states: {known}"
    )


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape of one session without axes of size 1, such as a batch axis, wherever it is."""
    return tuple(size for size in shape if size != 1)
