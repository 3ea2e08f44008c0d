"""Which axes of a graph's tensors are batch and time: what the user says, then names, then what may be tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import Final

from recurra.models.graph import Dims, dims_of
from recurra.models.hints import native_axes
from recurra.models.pairs import Pair
from recurra.models.prepare import Prepared
from recurra.models.refusal import ModelRefused
from recurra.models.roles import Axes, is_fixed, is_named, options

_MAX_PRODUCT: Final = 4096
_MAX_PLANS: Final = 24


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
    hints = native_axes(prepared.graph)
    if any(pair.origin == "lifted" for pair in prepared.pairs):
        _refuse_fixed(dims, hints)
    choices = [
        [(name, axes, cost) for axes, cost in options(name, dims[name], prepared.config.inputs.get(name), hints)]
        for name in dims
    ]
    found = []
    for combination in islice(product(*choices), _MAX_PRODUCT):
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


def _refuse_fixed(dims: Mapping[str, Dims], hints: Mapping[str, tuple[int, int]]) -> None:
    for name, (batch, _) in hints.items():
        if name in dims and batch < len(dims[name]) and is_fixed(dims[name][batch]):
            raise ModelRefused(
                f"input '{name}' is made for batches of {dims[name][batch]} (axis {batch}); export the model with a "
                "free batch axis, so that any number of sessions can share a run"
            )


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
