"""A model that runs: callers' arrays in, one or more calls of the graph, callers' arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recurra.models.layout import Constant, Layout, context_axis
from recurra.models.session import Session
from recurra.models.signature import Array


class Program:
    """A graph on a provider, with the layout of its tensors. Any one thread may run it.

    Attributes:
        session: of the graph.
        layout: of the graph's tensors.

    """

    def __init__(self, model: bytes | Session, layout: Layout, provider: str = "auto") -> None:
        """`provider` is one of PROVIDERS. Raises ModelRefused if the runtime refuses graph or provider."""
        self.session = model if isinstance(model, Session) else Session(model, provider)
        self.layout = layout
        outputs = [port.spec.name for port in layout.outputs]
        self._fetch = outputs + [port.output for port in layout.states]

    def run(
        self, inputs: Sequence[Array], states: Sequence[Array], lengths: Array | None = None
    ) -> tuple[list[Array], list[Array]]:
        """Advances N sessions by a chunk of T timesteps, both at least 1.

        Args:
            inputs: in the signature's order, each (N, T, *shape), or (N, *shape) without a time axis.
            states: in the signature's order, C-contiguous, N at each one's batch axis.
            lengths: (N,) timesteps of each row, the rest is padding, where the graph is made for that; None: all T.

        Returns:
            outputs (N, T, *shape) or (N, *shape), which may be views, and the new states, laid out like `states`.

        ONNX Runtime's exceptions pass through; shapes and dtypes are the caller's to check.

        """
        if not self.layout.stepwise:
            return self._call(inputs, states, lengths)
        steps = []
        for step in range(self.timesteps(inputs)):
            outputs, states = self._call(self.step(inputs, step), states)
            steps.append(self.untimed(outputs))
        return [np.stack(each, axis=1) for each in zip(*steps, strict=True)], list(states)

    def feed(
        self, inputs: Sequence[Array], states: Sequence[Array], lengths: Array | None = None
    ) -> tuple[dict[str, Array], list[Array]]:
        """What the graph is fed for one call, by name, and the new context samples."""
        layout = self.layout
        count = len(layout.states)
        fed = {
            port.input: state if port.batched else state[0]
            for port, state in zip(layout.states, states[:count], strict=True)
        }
        contexts, olds = [], iter(states[count:])
        for port, array in zip(layout.inputs, inputs, strict=True):
            chunk = array
            if port.context:
                axis = context_axis(port, stepwise=layout.stepwise)
                chunk = np.concatenate((next(olds), array), axis=axis)
                kept = chunk[:, -port.context :] if axis == 1 else chunk[..., -port.context :]
                contexts.append(np.ascontiguousarray(kept))
            fed[port.spec.name] = port.to_graph(chunk)
        if layout.constants:
            fed |= self.constants(inputs, lengths)
        return fed, contexts

    def constants(self, inputs: Sequence[Array], lengths: Array | None) -> dict[str, Array]:
        """What the graph is fed beside its callers' inputs and states."""
        if lengths is None and self.layout.constants:
            lengths = np.full(len(inputs[0]), self.timesteps(inputs))
        return {constant.name: _repeated(constant, lengths) for constant in self.layout.constants}

    def raw(self, outputs: Sequence[str], fed: Mapping[str, Array]) -> list[Array]:
        """Outputs of one call of the graph by name, as the graph lays them out."""
        return self.session.run(outputs, fed)

    def _call(
        self, inputs: Sequence[Array], states: Sequence[Array], lengths: Array | None = None
    ) -> tuple[list[Array], list[Array]]:
        fed, contexts = self.feed(inputs, states, lengths)
        results = self.session.run(self._fetch, fed)
        count = len(self.layout.outputs)
        outputs = [port.from_graph(array) for port, array in zip(self.layout.outputs, results[:count], strict=True)]
        news = [
            array if port.batched else array[None]
            for port, array in zip(self.layout.states, results[count:], strict=True)
        ]
        return outputs, news + contexts

    def step(self, inputs: Sequence[Array], step: int) -> list[Array]:
        """One timestep of the inputs that have a time axis; the others are held over the chunk."""
        chunks = []
        for port, array in zip(self.layout.inputs, inputs, strict=True):
            if not port.spec.has_time_axis:
                chunks.append(array)
            else:
                chunks.append(array[:, step] if port.time_axis is None else array[:, step : step + 1])
        return chunks

    def untimed(self, outputs: Sequence[Array]) -> list[Array]:
        """A single timestep's outputs without a time axis."""
        each = zip(self.layout.outputs, outputs, strict=True)
        return [output[:, 0] if port.time_axis is not None else output for port, output in each]

    def timesteps(self, inputs: Sequence[Array]) -> int:
        """T."""
        for port, array in zip(self.layout.inputs, inputs, strict=True):
            if port.spec.has_time_axis:
                return array.shape[1] if array.ndim > 1 else 1
        return 1


def _repeated(constant: Constant, counts: Array | None) -> Array:
    """The constant for a batch of rows with so many timesteps."""
    assert counts is not None
    if constant.counts:
        return counts.astype(constant.value.dtype)
    if constant.batch_axis is None:
        return constant.value
    return np.repeat(np.expand_dims(constant.value, constant.batch_axis), len(counts), axis=constant.batch_axis)
