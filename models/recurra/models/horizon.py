"""The memory horizon: how a disturbance of one timestep's input fades over the timesteps that follow.

What is left of it is the gradient seen from serving: where it has faded, no input before that matters any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from recurra.models.provider import ERRORS
from recurra.models.refusal import ModelRefused
from recurra.models.repository import Model
from recurra.models.samples import Samples, row
from recurra.models.signature import Array, TensorSpec

TIMESTEPS: Final = 100
FRACTION: Final = 0.01

_PAIRS: Final = 16  # disturbances, of which the median is told
# Of each feature's standard deviation, up and down. Up against down leaves an error of the second order only, some
# tenths of a percent; and at this size the difference is about 10,000 times the rounding of float32.
_SIZE: Final = 0.05
_ROUNDINGS: Final = 8  # a difference of fewer units in the last place, of the state's norm, may be rounding


@dataclass(frozen=True)
class Curve:
    """What is left of a disturbance.

    Attributes:
        timesteps: (points,) after the disturbed one: 0, 1, 2, ... or, where the model takes only longer chunks, theirs.
        left: (points,) norm of the difference, 1 right after the disturbance; NaN once only rounding is left.
        floor: (points,) what may be rounding.

    """

    timesteps: Array
    left: Array
    floor: Array

    def horizon(self, fraction: float = FRACTION) -> int | None:
        """The first timestep from which on less than `fraction` is left; None if none is seen to be."""
        over = np.flatnonzero(np.fmax(self.left, self.floor) >= fraction)
        after = int(over[-1]) + 1 if over.size else 0
        return int(self.timesteps[after]) if after < len(self.timesteps) else None


@dataclass(frozen=True)
class Fading:
    """The curves of a model: by layer, its states joined; and of all outputs, None if they are not reached."""

    layers: dict[str, Curve]
    outputs: Curve | None

    def curves(self) -> dict[str, Curve]:
        """All of them, the outputs' last."""
        return self.layers | ({"outputs": self.outputs} if self.outputs else {})


def fading(model: Model, inputs: Sequence[Array] | None = None, *, timesteps: int = TIMESTEPS) -> Fading:
    """Disturbs one timestep, after a warm-up of up to `timesteps`, and watches the `timesteps` after it.

    An id is replaced by another one. Inputs without a time axis stay as they are. Layers that the disturbed timestep
    does not reach at once have no curve.

    Args:
        inputs: in the signature's order, (rows, T, *shape), or (rows, *shape) without a time axis; None for noise.

    Raises:
        ModelRefused: the inputs are too short, the model fails on them, or nothing is reached.

    """
    signature, random = model.signature, np.random.default_rng(0)
    chunk = min(signature.chunk_sizes, default=1)
    after = -(-timesteps // chunk)
    samples = Samples(signature)
    given = inputs or samples.inputs(_PAIRS, chunk * (2 * after + 1))
    before = min(after, _chunks(given, signature.inputs, chunk) - 1 - after)
    if before < 0:
        raise ModelRefused(f"the input is too short to watch {timesteps} timesteps after one; give fewer timesteps")
    rows = [np.take(array, np.arange(_PAIRS) % len(array), axis=0) for array in given]
    at = chunk * (before + 1) - 1
    both = [_disturbed(array, spec, at, random) for array, spec in zip(rows, signature.inputs, strict=True)]
    states = samples.fresh(2 * _PAIRS)
    layers, whole = {state.layer: _Trace() for state in signature.states}, _Trace()
    for index in range(before + 1 + after):
        try:
            outputs, states = _run(model, _cut(both, signature.inputs, index * chunk, chunk), states)
        except ERRORS as error:
            raise ModelRefused(f"the model fails on this input: {' '.join(str(error).split())[:400]}") from error
        if not all(np.isfinite(state).all() for state in states):
            raise ModelRefused(f"a state is not finite {index + 1} chunks into this input; give fewer timesteps")
        if index >= before:
            whole.add((output, 0) for output in _cut(outputs, signature.outputs, -1, 1))
            for layer, trace in layers.items():
                named = zip(states, signature.states, strict=True)
                trace.add((state, spec.batch_axis) for state, spec in named if spec.layer == layer)
    curves = {layer: trace.curve(chunk) for layer, trace in layers.items()}
    reached = {layer: curve for layer, curve in curves.items() if curve}
    if not reached:
        raise ModelRefused("the disturbed timestep changes no state; give an input that the model responds to")
    return Fading(reached, whole.curve(chunk))


def _chunks(inputs: Sequence[Array], specs: Sequence[TensorSpec], chunk: int) -> int:
    """How many whole chunks the inputs have."""
    lengths = [array.shape[1] for array, spec in zip(inputs, specs, strict=True) if spec.has_time_axis]
    return min(lengths, default=0) // chunk


def _cut(arrays: Sequence[Array], specs: Sequence[TensorSpec], start: int, size: int) -> list[Array]:
    """`size` timesteps of the arrays that have a time axis; a `start` of -1 is the last timestep."""
    window = slice(start, start + size or None)
    return [array[:, window] if spec.has_time_axis else array for array, spec in zip(arrays, specs, strict=True)]


def _disturbed(array: Array, spec: TensorSpec, at: int, random: np.random.Generator) -> Array:
    """`array` (rows, T, *shape) disturbed at one timestep in one way, then in the other: (2 * rows, T, *shape)."""
    one, other = array.copy(), array.copy()
    if not spec.has_time_axis:
        return np.concatenate((one, other))
    if spec.dtype.kind == "f":
        spread = array.std(axis=(0, 1), dtype=np.float64)
        change = _SIZE * (spread if spread.any() else 1.0) * random.standard_normal(array[:, at].shape)
        one[:, at] -= change.astype(spec.dtype)
        other[:, at] += change.astype(spec.dtype)
    else:
        ids = np.arange(spec.bounds[0], spec.bounds[1] + 1) if spec.bounds else np.unique(array)
        if len(ids) > 1:
            steps = random.integers(1, len(ids), array[:, at].shape)
            other[:, at] = ids[(np.searchsorted(ids, array[:, at]) + steps) % len(ids)]
    return np.concatenate((one, other))


def _run(model: Model, inputs: Sequence[Array], states: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """One call; row by row where rows of one batch change each other."""
    if model.self_test.batched:
        return model.program.run(inputs, states)
    specs = model.signature.states
    alone = [
        model.program.run(
            [array[index : index + 1] for array in inputs],
            [row(state, index, spec) for state, spec in zip(states, specs, strict=True)],
        )
        for index in range(2 * _PAIRS)
    ]
    outputs = [np.concatenate(parts) for parts in zip(*(each[0] for each in alone), strict=True)]
    news = zip(*(each[1] for each in alone), strict=True)
    return outputs, [np.concatenate(parts, axis=spec.batch_axis) for parts, spec in zip(news, specs, strict=True)]


class _Trace:
    """The differences within the pairs, timestep by timestep, and what may be rounding in them."""

    def __init__(self) -> None:
        self._differences: list[Array] = []
        self._roundings: list[Array] = []

    def add(self, tensors: Iterable[tuple[Array, int]]) -> None:
        """A timestep's tensors, each with its batch axis: rows disturbed in one way, then in the other."""
        found = [np.moveaxis(each, axis, 0).reshape(2 * _PAIRS, -1) for each, axis in tensors if each.dtype.kind == "f"]
        if not found:
            return
        units = max(float(np.finfo(each.dtype).eps) for each in found)
        one, other = np.split(np.concatenate(found, axis=1).astype(np.float64), 2)
        self._differences.append(np.linalg.norm(other - one, axis=1))
        self._roundings.append(_ROUNDINGS * units * np.linalg.norm(one, axis=1))

    def curve(self, chunk: int) -> Curve | None:
        """The median over the pairs that were reached at once; None if none was."""
        if not self._differences:
            return None
        differences, roundings = np.stack(self._differences), np.stack(self._roundings)
        reached = differences[0] > roundings[0]
        if not reached.any():
            return None
        start = differences[0, reached]
        left = np.median(differences[:, reached] / start, axis=1)
        floor = np.median(roundings[:, reached] / start, axis=1)
        left[np.flatnonzero(left > floor)[-1] + 1 :] = np.nan
        return Curve(chunk * np.arange(len(left)), left, floor)
