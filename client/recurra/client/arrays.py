"""Callers' arrays to what a model takes: by name, of the right dtype and shape, or a message that says what fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recurra.client.model import Model, StateSpec, TensorSpec
from recurra.v1 import tensor_pb2
from recurra.wire.errors import InvalidArgument
from recurra.wire.tensors import to_tensor

Array = NDArray[Any]
Inputs = ArrayLike | Mapping[str, ArrayLike]
"""One array, for a model with one input, or arrays by input name."""


def by_name(model: Model, x: Inputs) -> list[tuple[TensorSpec, Array]]:
    """Each of the model's inputs with its array, converted to its dtype, of any shape.

    Raises InvalidArgument for a missing or unknown input, or a dtype that cannot be converted safely.
    """
    return _matched(model.inputs, x, takes(model))


def start_tensors(model: Model, x: Inputs | None) -> list[tensor_pb2.Tensor]:
    """Messages for the start graph's inputs; none for None. Raises InvalidArgument for what does not fit."""
    if x is None:
        return []
    if not model.start_inputs:
        raise InvalidArgument(f"model '{model.name}' has no start graph: it takes no start")
    told = f"the start of model '{model.name}' takes {', '.join(map(str, model.start_inputs))}"
    found = _matched(model.start_inputs, x, told)
    for spec, array in found:
        if not fits(array.shape, spec):
            raise InvalidArgument(f"'{spec.name}' has shape {array.shape}; {told}")
    return [to_tensor(array, spec.name) for spec, array in found]


def _matched(specs: Sequence[TensorSpec], x: Inputs, told: str) -> list[tuple[TensorSpec, Array]]:
    given = x if isinstance(x, Mapping) else None
    if given is None:
        if len(specs) != 1:
            raise InvalidArgument(f"give a dict of arrays by name: {told}")
        return [(specs[0], convert(x, specs[0].dtype, specs[0].name))]  # type: ignore[arg-type]
    names = {spec.name for spec in specs}
    if names != set(given):
        wrong = ", ".join(sorted(map(str, names ^ set(given))))
        raise InvalidArgument(f"missing or unknown: {wrong}; {told}")
    return [(spec, convert(given[spec.name], spec.dtype, spec.name)) for spec in specs]


def convert(value: ArrayLike, dtype: np.dtype[Any], name: str) -> Array:
    """`value` as an array of `dtype`.

    Raises InvalidArgument where values would lose their meaning (1.5 to an integer).
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"'{name}' is not an array: {error}") from None
    if array.dtype == dtype:
        return array
    integers = array.dtype.kind in "iu" and dtype.kind in "iu"
    if array.dtype.kind not in "biuf" or not (integers or np.can_cast(array.dtype, dtype, "same_kind")):
        raise InvalidArgument(
            f"'{name}' is {dtype}; {array.dtype} cannot be converted safely, cast it yourself if you mean it"
        )
    if integers and array.size and not np.can_cast(array.dtype, dtype):
        bounds = np.iinfo(dtype)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise InvalidArgument(f"'{name}' is {dtype}, and a value is out of its range")
    with np.errstate(over="ignore"):  # too large for the dtype: infinite, and the server's to refuse
        return array.astype(dtype)


def fits(shape: Sequence[int], spec: TensorSpec) -> bool:
    """Whether `shape` is one of a timestep of `spec`."""
    return len(shape) == len(spec.shape) and all(
        want is None or size == want for size, want in zip(shape, spec.shape, strict=True)
    )


@dataclass(frozen=True)
class Layout:
    """Inputs of the same T timesteps.

    Attributes:
        inputs: by name, (*lead, T, *shape) where the input has a time axis, else (*lead, *shape).
        timed: the names of inputs with a time axis.
        timesteps: T; 1 for a model without any time axis.
        single: they were given as one timestep, without the time axis.

    """

    inputs: dict[str, Array]
    timed: frozenset[str]
    timesteps: int
    single: bool


def lay_out(model: Model, x: Inputs, lead: tuple[int, ...] = ()) -> Layout:
    """`x` as the model takes it: one timestep (*lead, *shape), or (*lead, T, *shape). `lead`: (), or (k,) for k rows.

    Raises InvalidArgument for names, dtypes or shapes that do not fit, and for a T that the model does not take.
    """
    axis, inputs, found = len(lead), dict[str, Array](), set[tuple[int, bool]]()
    for spec, array in by_name(model, x):
        head, rest = array.shape[:axis], array.shape[axis:]
        if head == lead and fits(rest, spec):
            inputs[spec.name] = np.expand_dims(array, axis) if spec.has_time_axis else array
            if spec.has_time_axis:
                found.add((1, True))
        elif head == lead and rest and spec.has_time_axis and fits(rest[1:], spec):
            inputs[spec.name] = array
            found.add((rest[0], False))
        else:
            rows = f"for each of {lead[0]} rows " if lead else ""
            raise InvalidArgument(
                f"'{spec.name}' has shape {array.shape}; {rows}{takes(model)}, or one timestep, without T"
            )
    if len(found) > 1:
        raise InvalidArgument(f"inputs differ in their number of timesteps; {takes(model)}")
    timesteps, single = next(iter(found), (1, False))
    if timesteps == 0:
        raise InvalidArgument("a chunk has at least one timestep")
    if model.chunk_sizes and timesteps not in model.chunk_sizes:
        sizes = ", ".join(map(str, model.chunk_sizes))
        raise InvalidArgument(f"model '{model.name}' takes chunks of {sizes} timesteps, not {timesteps}")
    return Layout(inputs, frozenset(spec.name for spec in model.inputs if spec.has_time_axis), timesteps, single)


def takes(model: Model) -> str:
    """What the model takes, for a message."""
    return f"model '{model.name}' takes {', '.join(map(str, model.inputs))}"


def state_tensors(model: Model, values: Mapping[str, ArrayLike]) -> list[tensor_pb2.Tensor]:
    """Messages for states by name.

    Raises InvalidArgument for an unknown name, or a dtype or shape that does not fit.
    """
    specs = {spec.name: spec for spec in model.states}
    tensors = []
    for name, value in values.items():
        spec = specs.get(name)
        if spec is None:
            raise InvalidArgument(f"no state is named '{name}'; {_has(model.states)}")
        array = convert(value, spec.dtype, name)
        if array.shape != spec.shape:
            raise InvalidArgument(f"state '{name}' has shape {spec.shape}, not {array.shape}")
        tensors.append(to_tensor(array, name))
    return tensors


def check_names(model: Model, names: Sequence[str]) -> None:
    """Raises InvalidArgument for what is neither a state nor a layer of the model."""
    known = {spec.name for spec in model.states} | {spec.layer for spec in model.states}
    for name in names:
        if name not in known:
            raise InvalidArgument(f"no state or layer is named '{name}'; {_has(model.states)}")


def _has(states: Sequence[StateSpec]) -> str:
    return "the model has " + ", ".join(f"{spec.name} {spec.shape}" for spec in states) if states else "it has none"
