"""Which axes of a graph's tensors are batch and time: what the user says, then names, then what may be tried."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import Final

from recurra.models.config import TensorConfig
from recurra.models.graph import Dims, dims_of
from recurra.models.pairs import Pair
from recurra.models.prepare import Prepared
from recurra.models.refusal import ModelRefused

_BATCH: Final = re.compile(r"n|b|bs|.*batch.*", re.IGNORECASE)
_TIME: Final = re.compile(
    r"t|l|s|.*time.*|.*seq.*|.*len(gth)?s?|.*steps?|.*frames?|.*samples?|.*chunk.*", re.IGNORECASE
)
_MAX_PRODUCT: Final = 4096
_MAX_PLANS: Final = 24


@dataclass(frozen=True)
class Axes:
    """Batch and time axis of an input in the graph, None where there is none."""

    batch: int | None
    time: int | None


@dataclass(frozen=True)
class Plan:
    """One reading of a graph's axes.

    Attributes:
        states: the batch axis by state input.
        cost: how far-fetched it is; plans of equal cost are equally likely.

    """

    inputs: Mapping[str, Axes]
    states: Mapping[str, int | None]
    cost: int


def plans(prepared: Prepared) -> list[Plan]:
    """The readings worth a try, the likeliest first. Raises ModelRefused if model.toml names an axis that is not."""
    dims = {value.name: dims_of(value) for value in prepared.inputs}
    options = [
        [(name, axes, cost) for axes, cost in _options(name, dims[name], prepared.config.inputs.get(name))]
        for name in dims
    ]
    found = []
    for combination in islice(product(*options), _MAX_PRODUCT):
        inputs = {name: axes for name, axes, _ in combination}
        if _consistent(inputs, dims):
            found.append(Plan(inputs, {}, sum(cost for _, _, cost in combination)))
    found.sort(key=lambda plan: plan.cost)
    graph_inputs = {value.name: value for value in prepared.graph.input}
    states = {pair: dims_of(graph_inputs[pair.input]) for pair in prepared.pairs}
    return [
        Plan(plan.inputs, axes, plan.cost)
        for plan in found[:_MAX_PLANS]
        for axes in _state_axes(states, _names(plan.inputs, dims))
    ]


def is_named(size: int | str | None, role: str) -> bool:
    """Whether the name of a size speaks of "batch" or "time"."""
    return isinstance(size, str) and bool((_BATCH if role == "batch" else _TIME).fullmatch(size))


def _options(name: str, dims: Dims, given: TensorConfig | None) -> list[tuple[Axes, int]]:
    """What one input's axes may be, with the cost of each."""
    given = given or TensorConfig()
    for key, axis in (("batch_axis", given.batch_axis), ("time_axis", given.time_axis)):
        if axis is not None and axis is not False and axis >= len(dims):
            raise ModelRefused(f"model.toml: [inputs.{name}] {key} = {axis}, but it has {len(dims)} axes")
    batches = _batch_options(dims, given)
    times = _time_options(dims, given)
    options = [
        (Axes(batch, time), _cost(dims, batch, (0, 1, 3)) + _cost(dims, time, (0, 1, 2)))
        for batch in batches
        for time in times
        if batch is None or batch != time
    ]
    if not options:
        raise ModelRefused(f"model.toml: [inputs.{name}]: batch and time cannot be the same axis")
    # Batch first is the more usual of two equally likely orders.
    return sorted(options, key=lambda option: (option[1], option[0].batch or 0, option[0].time or 0))


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


def _consistent(inputs: Mapping[str, Axes], dims: Mapping[str, Dims]) -> bool:
    """A size's name means one thing: what is batch in one input is so in all."""
    batches, times = (
        _names(inputs, dims),
        {dims[name][axes.time] for name, axes in inputs.items() if axes.time is not None},
    )
    times = {name for name in times if isinstance(name, str)}
    if batches & times:
        return False
    for name, axes in inputs.items():
        for axis, size in enumerate(dims[name]):
            if (
                size in batches
                and axes.batch is not None
                and dims[name][axes.batch] not in batches
                and axis != axes.time
            ):
                return False
    return True


def _names(inputs: Mapping[str, Axes], dims: Mapping[str, Dims]) -> set[str]:
    found = {dims[name][axes.batch] for name, axes in inputs.items() if axes.batch is not None}
    return {name for name in found if isinstance(name, str)}


def _state_axes(states: Mapping[Pair, Dims], batches: set[str]) -> list[dict[str, int | None]]:
    """The batch axes of all states: the likeliest of each, and where there are two likely ones, the second of each."""
    ranked = {pair: _state_options(pair, dims, batches) for pair, dims in states.items()}
    count = max((len(options) for options in ranked.values()), default=1)
    return [
        {pair.input: options[min(index, len(options) - 1)] for pair, options in ranked.items()}
        for index in range(count)
    ]


def _state_options(pair: Pair, dims: Dims, batches: set[str]) -> list[int | None]:
    if pair.batch_axis is not None:
        if pair.batch_axis >= len(dims):
            raise ModelRefused(f"state '{pair.name}': batch_axis = {pair.batch_axis}, but it has {len(dims)} axes")
        return [pair.batch_axis]
    named = [axis for axis, size in enumerate(dims) if size in batches] or [
        axis for axis, size in enumerate(dims) if is_named(size, "batch")
    ]
    if named:
        return [named[0]]
    free: list[int | None] = [axis for axis, size in enumerate(dims) if not isinstance(size, int)]
    if free:
        return free
    # Of several ones in (1, 1, H) the second is the batch, as native nodes have it; any is right for one session.
    ones = [axis for axis, size in enumerate(dims) if size == 1 and axis < max(len(dims) - 1, 1)]
    return [1 if len(dims) >= 3 and 1 in ones else ones[0]] if ones else [None]  # noqa: PLR2004
