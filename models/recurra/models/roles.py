"""What the axes of one graph input may be: what the user says, then names, then native nodes, then sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from recurra.models.config import TensorConfig
from recurra.models.graph import Dims
from recurra.models.refusal import ModelRefused

_BATCH: Final = re.compile(r"n|b|bs|.*batch.*", re.IGNORECASE)
_TIME: Final = re.compile(
    r"t|l|s|.*time.*|.*seq.*|.*len(gth)?s?|.*steps?|.*frames?|.*samples?|.*chunk.*", re.IGNORECASE
)


@dataclass(frozen=True)
class Axes:
    """Batch and time axis of an input in the graph, None where there is none."""

    batch: int | None
    time: int | None


def is_named(size: int | str | None, role: str) -> bool:
    """Whether the name of a size speaks of "batch" or "time"."""
    return isinstance(size, str) and bool((_BATCH if role == "batch" else _TIME).fullmatch(size))


def is_fixed(size: int | str | None) -> bool:
    """Whether a size is a number above 1."""
    return isinstance(size, int) and size > 1


def options(
    name: str, dims: Dims, given: TensorConfig | None, hints: Mapping[str, tuple[int, int]]
) -> list[tuple[Axes, int]]:
    """What one input's axes may be, with the cost of each."""
    given = given or TensorConfig()
    for key, axis in (("batch_axis", given.batch_axis), ("time_axis", given.time_axis)):
        if axis is not None and axis is not False and axis >= len(dims):
            raise ModelRefused(f"model.toml: [inputs.{name}] {key} = {axis}, but it has {len(dims)} axes")
    batches = _batch_options(dims, given)
    times = _time_options(dims, given)
    if name in hints and max(hints[name]) < len(dims):  # what the user says and what names say comes first
        batch, time = hints[name]
        if len(batches) > 1 and not is_fixed(dims[batch]):
            batches = [batch]
        if len(times) > 1 or (times == [None] and given.time_axis is None):
            times = [time]
    found = [
        (Axes(batch, time), _cost(dims, batch, (0, 1, 3)) + _cost(dims, time, (0, 1, 2)))
        for batch in batches
        for time in times
        if batch is None or batch != time
    ]
    if not found:
        raise ModelRefused(f"model.toml: [inputs.{name}]: batch and time cannot be the same axis")
    # Batch first is the more usual of two equally likely orders.
    return sorted(found, key=lambda option: (option[1], option[0].batch or 0, option[0].time or 0))


def _batch_options(dims: Dims, given: TensorConfig) -> list[int | None]:
    if given.batch_axis is not None:
        return [given.batch_axis]
    named = [axis for axis, size in enumerate(dims) if is_named(size, "batch")]
    if named:
        return [named[0]]
    free = [axis for axis, size in enumerate(dims) if not isinstance(size, int) and not is_named(size, "time")]
    ones = [axis for axis, size in enumerate(dims) if size == 1]
    return [*free, *ones[:2], None]


def _time_options(dims: Dims, given: TensorConfig) -> list[int | None]:
    if given.time_axis is not None:
        return [None] if given.time_axis is False else [int(given.time_axis)]
    named = [axis for axis, size in enumerate(dims) if is_named(size, "time") and not is_named(size, "batch")]
    if named:
        return [named[0]]
    free = [axis for axis, size in enumerate(dims) if not isinstance(size, int) and not is_named(size, "batch")]
    ones = [axis for axis, size in enumerate(dims[:2]) if size == 1]
    # (N, 1) is one feature, (N, 1, F) one timestep, (N, 1, H, W) one channel.
    return [*free, *(ones if len(dims) == 3 else []), None]  # noqa: PLR2004


def _cost(dims: Dims, axis: int | None, costs: tuple[int, int, int]) -> int:
    free, one, none = costs
    if axis is None:
        return none
    return one if dims[axis] == 1 else free
