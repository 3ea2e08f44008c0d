"""Seeded random arrays that a model accepts, for probing and proving it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from recurra.models.signature import Array, Signature, StateSpec, TensorSpec

ANY_SIZE: Final = 4  # stands for a size that may be any


class Samples:
    """Draws arrays for a signature, the same ones at every start."""

    def __init__(self, signature: Signature, seed: int = 0) -> None:
        self._signature = signature
        self._random = np.random.default_rng(seed)

    def inputs(self, rows: int, timesteps: int) -> list[Array]:
        """One array for each input, (rows, timesteps, ...) or (rows, ...)."""
        return [self._tensor(spec, rows, timesteps) for spec in self._signature.inputs]

    def fresh(self, rows: int) -> list[Array]:
        """The fresh states of `rows` sessions, in the graph's layout."""
        return [stacked([state.fresh] * rows, state) for state in self._signature.states]

    def disturbed(self, state: Array, scale: float) -> Array:
        """`state` with every value changed."""
        if state.dtype.kind == "f":
            return (state + scale * self._random.standard_normal(state.shape)).astype(state.dtype)
        return np.logical_not(state) if state.dtype.kind == "b" else (state + 1).astype(state.dtype)

    def blanked(self, inputs: Sequence[Array], value: float, first: int) -> list[Array]:
        """`inputs` with every third timestep, from `first` on, filled with `value`, where they may hold it."""
        found = []
        for spec, array in zip(self._signature.inputs, inputs, strict=True):
            low, high = spec.bounds or (value, value)
            copy = array.copy()
            if spec.has_time_axis and low <= value <= high and (spec.dtype.kind == "f" or value == int(value)):
                copy[:, first::3] = value
            found.append(copy)
        return found

    def _tensor(self, spec: TensorSpec, rows: int, timesteps: int) -> Array:
        shape = tuple(ANY_SIZE if size is None else size for size in spec.shape)
        shape = (rows, timesteps, *shape) if spec.has_time_axis else (rows, *shape)
        if spec.bounds is not None or spec.dtype.kind in "iub":
            low, high = spec.bounds or (0, 1)
            return self._random.integers(low, high, shape, endpoint=True).astype(spec.dtype)
        return self._random.standard_normal(shape).astype(spec.dtype)


def stacked(rows: Sequence[Array], state: StateSpec) -> Array:
    """States of single sessions side by side, C-contiguous in the graph's layout."""
    return np.ascontiguousarray(np.stack(rows, axis=state.batch_axis))


def row(array: Array, index: int, state: StateSpec) -> Array:
    """One session of a batch of states, the batch axis kept, C-contiguous."""
    return np.ascontiguousarray(np.take(array, [index], axis=state.batch_axis))
