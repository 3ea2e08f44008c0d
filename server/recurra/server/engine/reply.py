"""The reply that a record keeps, so that a retry gets what the first try would have got."""

from __future__ import annotations

import struct
from typing import Any, Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from recurra.models import Signature

Array = NDArray[Any]

MAX_REPLY_BYTES: Final = 16 << 10


def pack(tensors: list[Array], *, rows: int) -> NDArray[np.uint8]:
    """Arrays of (rows, ...) as (rows, R) uint8: shapes, then bytes. R is 0 if that is more than a record keeps."""
    if not fits(tensors):
        return np.empty((rows, 0), np.uint8)
    shapes = b"".join(struct.pack(f"<B{t.ndim - 1}I", t.ndim - 1, *t.shape[1:]) for t in tensors)
    packed = np.empty((rows, len(shapes) + sum(t[:1].nbytes for t in tensors)), np.uint8)
    packed[:, : len(shapes)] = np.frombuffer(shapes, np.uint8)
    at = len(shapes)
    for tensor in tensors:
        columns = np.ascontiguousarray(tensor).reshape(rows, -1).view(np.uint8)
        packed[:, at : at + columns.shape[1]] = columns
        at += columns.shape[1]
    return packed


def fits(tensors: list[Array]) -> bool:
    """Whether a record keeps them."""
    return sum(1 + 4 * (t.ndim - 1) + t[:1].nbytes for t in tensors) <= MAX_REPLY_BYTES


def tag(signature: Signature) -> int:
    """32 bits that tell replies of other outputs and states apart."""
    outputs = [(spec.name, str(spec.dtype)) for spec in signature.outputs]
    states = [(spec.name, str(spec.dtype)) for spec in signature.states]
    return crc32(repr(outputs + states).encode())


def unpack(kept: bytes, dtypes: list[np.dtype[Any]]) -> list[Array]:
    """One session's tensors, each (1, ...)."""
    shapes, at = [], 0
    for _ in dtypes:
        rank = kept[at]
        shapes.append((1, *struct.unpack_from(f"<{rank}I", kept, at + 1)))
        at += 1 + 4 * rank
    tensors = []
    for dtype, shape in zip(dtypes, shapes, strict=True):
        count = int(np.prod(shape, dtype=np.int64))
        tensors.append(np.frombuffer(kept, dtype, count, at).reshape(shape))
        at += count * dtype.itemsize
    return tensors
