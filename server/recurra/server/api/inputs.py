"""Tensors of a request, checked whole against the model's signature before anything is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.models import Model, Signature, StateSpec, TensorSpec
from recurra.v1 import tensor_pb2
from recurra.wire.errors import InvalidArgument
from recurra.wire.tensors import to_array, to_arrays

Array = NDArray[Any]


def chunk(signature: Signature, tensors: Sequence[tensor_pb2.Tensor], rows: int | None) -> tuple[list[Array], int]:
    """A request's inputs in the signature's order, and T.

    Args:
        rows: N for a frame, whose tensors are (N, T, ...); None for one session, whose tensors are (T, ...).

    Returns:
        arrays (N, T, ...), or (N, ...) for inputs without a time axis; N is 1 for one session.

    Raises:
        InvalidArgument: a wrong name, dtype, shape or size of chunk; a value that is not finite or no valid index.
    """
    arrays = _by_name(signature.inputs, tensors)
    if rows is None:
        arrays = {name: array[None] for name, array in arrays.items()}
    return fit(signature, arrays, rows)


def fit(signature: Signature, arrays: Mapping[str, Array], rows: int | None) -> tuple[list[Array], int]:
    """As chunk, of arrays (N, T, ...) by name; their names are checked already."""
    timesteps: int | None = None
    for spec in signature.inputs:
        array = arrays[spec.name]
        _check(spec, array, rows)
        if spec.has_time_axis:
            if timesteps not in (None, array.shape[1]):
                raise InvalidArgument(f"'{spec.name}' has {array.shape[1]} timesteps, other inputs {timesteps}")
            timesteps = array.shape[1]
    count = 1 if timesteps is None else timesteps
    allow(signature, count)
    return [arrays[spec.name] for spec in signature.inputs], count


def start(model: Model, tensors: Sequence[tensor_pb2.Tensor]) -> list[Array]:
    """The start graph's inputs, each (1, ...); none for none. Raises InvalidArgument."""
    if not tensors:
        return []
    if model.start is None:
        raise InvalidArgument(f"model '{model.name}' takes no start inputs: it has no start.onnx")
    specs = model.start.inputs
    arrays = {name: array[None] for name, array in _by_name(specs, tensors).items()}
    for spec in specs:
        _check(spec, arrays[spec.name], None)
    return [arrays[spec.name] for spec in specs]


def allow(signature: Signature, timesteps: int) -> None:
    """Raise InvalidArgument for a size of chunk that the model does not take."""
    if timesteps < 1:
        raise InvalidArgument("a chunk has at least one timestep")
    if signature.chunk_sizes and timesteps not in signature.chunk_sizes:
        sizes = ", ".join(map(str, signature.chunk_sizes))
        raise InvalidArgument(f"a chunk of {timesteps} timesteps; this model takes chunks of {sizes}")


def states(signature: Signature, tensors: Iterable[tensor_pb2.Tensor]) -> dict[int, Array]:
    """Given states by index in the signature, each (1, ...). Raises InvalidArgument."""
    given = {}
    for name, array in to_arrays(tensors).items():
        index = next((at for at, spec in enumerate(signature.states) if spec.name == name), None)
        if index is None:
            raise InvalidArgument(f"no state '{name}'; the model has {_names(signature.states)}")
        spec = signature.states[index]
        if array.dtype != spec.dtype or array.shape != spec.shape:
            raise InvalidArgument(
                f"state '{name}' is {spec.dtype} of shape {list(spec.shape)}, "
                f"not {array.dtype} of shape {list(array.shape)}"
            )
        _finite(name, array)
        given[index] = array[None]
    return given


def chosen(signature: Signature, names: Sequence[str]) -> list[int]:
    """Indices of the states that `names` (of states or layers; empty: all) stand for. Raises InvalidArgument."""
    if not names:
        return list(range(len(signature.states)))
    found = set()
    for name in names:
        hits = [at for at, spec in enumerate(signature.states) if name in (spec.name, spec.layer)]
        if not hits:
            raise InvalidArgument(f"no state or layer '{name}'; the model has {_names(signature.states)}")
        found.update(hits)
    return sorted(found)


def _by_name(specs: Sequence[TensorSpec], tensors: Sequence[tensor_pb2.Tensor]) -> dict[str, Array]:
    if len(tensors) == len(specs) == 1 and tensors[0].name in ("", specs[0].name):
        return {specs[0].name: to_array(tensors[0])}
    arrays = to_arrays(tensors)
    if arrays.keys() != {spec.name for spec in specs}:
        got = ", ".join(f"'{name}'" for name in arrays) or "none"
        raise InvalidArgument(f"inputs {got}; the model takes {_names(specs)}")
    return arrays


def _check(spec: TensorSpec, array: Array, rows: int | None) -> None:
    axes = 1 + spec.has_time_axis
    sizes = array.shape[axes:]
    fits = array.ndim == axes + len(spec.shape) and (
        sizes == spec.shape or all(want in (None, size) for want, size in zip(spec.shape, sizes, strict=True))
    )
    if array.dtype != spec.dtype or not fits:
        lead = ("N",) * (rows is not None) + ("T",) * spec.has_time_axis
        want = ", ".join((*lead, *("any" if size is None else str(size) for size in spec.shape)))
        shape = list(array.shape if rows is not None else array.shape[1:])
        raise InvalidArgument(
            f"input '{spec.name}' is {spec.dtype} of shape [{want}], not {array.dtype} of shape {shape}"
        )
    if 0 in sizes:  # a recurrent node without a timestep aborts the runtime, and the server with it
        raise InvalidArgument(f"input '{spec.name}' is empty: it has shape {list(array.shape[1:])}")
    if rows is not None and len(array) != rows:
        raise InvalidArgument(f"input '{spec.name}' has {len(array)} rows, but the frame {rows} sessions")
    _finite(spec.name, array)
    if spec.bounds is not None and array.size:
        low, high = spec.bounds
        if array.min() < low or array.max() > high:
            raise InvalidArgument(
                f"input '{spec.name}' indexes a table: values from {low} to {high}, not {array.min()} to {array.max()}"
            )


def _finite(name: str, array: Array) -> None:
    if array.dtype.kind == "f" and np.count_nonzero(np.isfinite(array)) != array.size:  # all() takes twice as long
        raise InvalidArgument(f"'{name}' holds a NaN or an infinity, which would stay in the state for ever")


def _names(specs: Sequence[TensorSpec | StateSpec]) -> str:
    return ", ".join(f"'{spec.name}'" for spec in specs)
