"""A file of numbers as a model's input."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np

from recurra.models.refusal import ModelRefused
from recurra.models.signature import Array, Signature, TensorSpec


def read(path: Path, signature: Signature) -> list[Array]:
    """The inputs in the signature's order, each (rows, T, *shape), or (rows, *shape) without a time axis.

    A .npy file holds the only input, a .npz file all by name, with or without the axis of rows. A .csv file has a row
    a timestep; a first line of names is passed over.

    Raises ModelRefused if the file cannot be read, or is none that the model takes.
    """
    names = [spec.name for spec in signature.inputs]
    try:
        arrays = _arrays(path, names)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ModelRefused(f"'{path}' cannot be read as .npy, .npz or .csv: {error}") from error
    if sorted(arrays) != sorted(names):
        raise ModelRefused(f"'{path}' gives {', '.join(sorted(arrays))}; the model takes {', '.join(sorted(names))}")
    return [_fitted(arrays[spec.name], spec, lines=path.suffix == ".csv") for spec in signature.inputs]


def _arrays(path: Path, names: list[str]) -> Mapping[str, Array]:
    if path.suffix == ".npz":
        if not is_zipfile(path):
            raise ValueError("it is no archive of arrays")
        with np.load(path, allow_pickle=False) as kept:
            return dict(kept)
    if len(names) > 1:
        raise ValueError(f"the model has several inputs; a .npz file holds them by name: {', '.join(names)}")
    if path.suffix == ".npy":
        return {names[0]: np.load(path, allow_pickle=False)}
    lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    if lines and not _is_number(lines[0].split(",")[0]):
        del lines[0]
    if not lines:
        raise ValueError("it has no numbers")
    return {names[0]: np.loadtxt(lines, delimiter=",", ndmin=2)}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _fitted(array: Array, spec: TensorSpec, *, lines: bool) -> Array:
    rank = len(spec.shape) + spec.has_time_axis
    sizes = [size for size in spec.shape if size is not None]
    if lines and len(sizes) == len(spec.shape) and array[0].size == prod(sizes):
        array = array.reshape(len(array), *sizes)
    if array.ndim == rank:
        array = array[None]
    pairs = zip(spec.shape, array.shape[array.ndim - len(spec.shape) :], strict=False)
    if array.ndim != rank + 1 or array.size == 0 or any(size not in (None, found) for size, found in pairs):
        wanted = [*(["time"] if spec.has_time_axis else []), *("any" if size is None else size for size in spec.shape)]
        raise ModelRefused(
            f"input '{spec.name}' has shape ({', '.join(map(str, array.shape))}); the model takes "
            f"({', '.join(map(str, wanted))}), or rows of it"
        )
    if array.dtype.kind not in "iufb" or not np.isfinite(array).all():
        raise ModelRefused(f"input '{spec.name}' has values that are no finite numbers; replace them")
    with np.errstate(over="ignore", invalid="ignore"):  # a value that is too large is told below
        fitted = array.astype(spec.dtype)
    if not np.isfinite(fitted).all():
        raise ModelRefused(f"input '{spec.name}' has values that are too large for {spec.dtype}")
    if spec.dtype.kind != "f":
        low, high = spec.bounds or (fitted.min(), fitted.max())
        if (fitted != array).any() or fitted.min() < low or fitted.max() > high:
            raise ModelRefused(f"input '{spec.name}' must hold whole numbers from {low} to {high}")
    return fitted
