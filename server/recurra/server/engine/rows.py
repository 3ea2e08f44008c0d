"""Whole states as rows of bytes, as records keep them: each state's tensor, in the signature's order. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.models import StateSpec

Array = NDArray[Any]
Rows = NDArray[np.uint8]
Specs = Sequence[StateSpec]


def joined(specs: Specs, states: Sequence[Array]) -> Rows:
    """(N, state_bytes) out of each state's (N, *shape)."""
    rows, at = np.empty((len(states[0]), sum([spec.nbytes for spec in specs])), np.uint8), 0
    for state, spec in zip(states, specs, strict=True):
        rows[:, at : at + spec.nbytes].view(spec.dtype).reshape(state.shape)[...] = state
        at += spec.nbytes
    return rows


def tensors(specs: Specs, rows: Rows) -> list[Array]:
    """Each state's (N, *shape), views where their alignment allows it."""
    found, at = [], 0
    for spec in specs:
        found.append(rows[:, at : at + spec.nbytes].view(spec.dtype).reshape(len(rows), *spec.shape))
        at += spec.nbytes
    return found


def finite(specs: Specs, rows: Rows) -> NDArray[np.bool_]:
    """(N,) bool: whose states hold neither a NaN nor an infinity."""
    found = np.ones(len(rows), bool)
    for spec, tensor in zip(specs, tensors(specs, rows), strict=True):
        if spec.dtype.kind == "f" and not np.isfinite(tensor).all():
            found &= np.isfinite(tensor).reshape(len(rows), -1).all(1)
    return found
