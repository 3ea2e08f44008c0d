"""Tensors as a user tells them, "float32[batch,time,8]": a number is a size, a word a size that may be any."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from zlib import crc32

import numpy as np

from recurra.models.refusal import ModelRefused
from recurra.models.signature import Array

HOW: Final = "float32[batch,time,8]"
_TENSOR: Final = re.compile(r"\s*(float16|float32|float64|int32|int64|bool)\[([\w\s,]*)\]\s*")
_FIRST_SIZE: Final = 2
_STEP: Final = 3


@dataclass(frozen=True)
class Example:
    """One tensor.

    Attributes:
        name: "x"; of a tuple's parts "hx_0", "hx_1".
        dims: sizes, and words for those that may be any.

    """

    name: str
    dtype: np.dtype[np.generic]
    dims: tuple[int | str, ...]

    @property
    def free(self) -> dict[int, str]:
        """The words by axis."""
        return {axis: size for axis, size in enumerate(self.dims) if isinstance(size, str)}

    def array(self, sizes: Mapping[str, int]) -> Array:
        """Random numbers, or ones of an integer type: they index a table, and are lengths that are not empty."""
        shape = [size if isinstance(size, int) else sizes[size] for size in self.dims]
        draw = np.random.default_rng(crc32(self.name.encode())).standard_normal if self.dtype.kind == "f" else np.ones
        return np.asarray(draw(shape)).astype(self.dtype)


def parse(name: str, text: str) -> list[Example]:
    """One tensor, or those of a tuple: "(float32[2,batch,16], float32[2,batch,16])". Raises ModelRefused."""
    tensors = _TENSOR.findall(text)
    bare = text.strip()
    is_tuple = bare.startswith("(") and bare.endswith(")")
    rest = [part for part in _TENSOR.sub("", bare[1:-1] if is_tuple else bare).split(",") if part]
    if rest or not tensors or (len(tensors) > 1 and not is_tuple):
        raise ModelRefused(f"'{name}={text}' is no tensor; write it as {name}={HOW}, or ({HOW}, {HOW}) for a tuple")
    return [
        Example(f"{name}_{index}" if is_tuple else name, np.dtype(dtype), tuple(map(_size, _words(dims))))
        for index, (dtype, dims) in enumerate(tensors)
    ]


def sizes(examples: Iterable[Example]) -> dict[str, int]:
    """A size for each word, no two alike, so that an exporter cannot take one for another."""
    found: dict[str, int] = {}
    for word in (word for example in examples for word in example.free.values()):
        found.setdefault(word, _FIRST_SIZE + _STEP * len(found))
    return found


def told(options: Iterable[str]) -> dict[str, str]:
    """The options "x=float32[batch,time,8]" by name. Raises ModelRefused."""
    found = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals:
            raise ModelRefused(f"'{option}' names no input; write it as x={HOW}")
        found[name.strip()] = text
    return found


def _words(dims: str) -> list[str]:
    return [word.strip() for word in dims.split(",") if word.strip()]


def _size(word: str) -> int | str:
    return int(word) if word.isdecimal() else word
