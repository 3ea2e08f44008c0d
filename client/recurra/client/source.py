"""What a command line is given as input: JSON, or a file of numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, cast

import numpy as np

from recurra.client.arrays import Inputs
from recurra.wire.errors import InvalidArgument


def read_input(text: str, stdin: IO[str], option: str = "--input") -> Inputs:
    """The input that `text` stands for.

    Args:
        text: JSON (an array, or an object of arrays by input name); "-" for JSON on `stdin`; "@" and a path to a .npy
            file, to a .csv file (a row a timestep; a first line of names is passed over), or to a file of JSON.
        option: what it was given as.

    Raises:
        InvalidArgument: it is none of these.
        OSError: the file cannot be read.
    """
    if text == "-":
        return _from_json(stdin.read(), "standard input")
    if not text.startswith("@"):
        return _from_json(text, option)
    path = Path(text[1:])
    try:
        if path.suffix == ".npy":
            return cast("Inputs", np.load(path, allow_pickle=False))
        if path.suffix == ".csv":
            return _from_csv(path.read_text("utf-8-sig").splitlines())
    except ValueError as error:
        raise InvalidArgument(f"{path}: {error}") from None
    return _from_json(path.read_text(), str(path))


def _from_json(text: str, name: str) -> Inputs:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"{name} is not JSON: {error}") from None
    if not isinstance(value, list | dict | int | float):
        raise InvalidArgument(f"{name} must be an array, or an object of arrays by input name")
    return value


def _from_csv(lines: list[str]) -> Inputs:
    rows = [line.split(",") for line in lines if line.strip()]
    if rows and not _numbers(rows[0]):
        del rows[0]
    return np.array([[float(cell) for cell in row] for row in rows])


def _numbers(cells: list[str]) -> bool:
    try:
        return all(np.isfinite(float(cell)) for cell in cells)
    except ValueError:
        return False
