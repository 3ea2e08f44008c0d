"""A 128-bit digest of each session's input, for a whole batch at once.

Multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is fast", 2014): 32-bit words times random
64-bit keys, added modulo 2**64, twice. It guards against a client that uses an id again with another input, not against
an attacker, who could only harm his own session.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_SEED = 0x5EC0_44A  # replicas must agree on it for ever
_SPREAD = np.array([1, 0x9E3779B97F4A7C15], np.uint64)


def salt(*parts: object) -> int:
    """64 bits of whatever else an operation consists of: its kind, options and given states."""
    digest = blake2b(digest_size=8)
    for part in parts:
        data = part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def digests(inputs: list[Array], salts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(N, 2) uint64 from inputs of shape (N, ...) and (N,) salts, or (1,) for all.

    Shapes count: bytes do not tell zeros apart.
    """
    salts = salts ^ np.uint64(_shape_salt(*(array.shape[1:] for array in inputs)))
    total = salts[:, None] * _SPREAD
    at = 0
    for array in inputs:
        rows = np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
        spare = -rows.shape[1] % 4
        words = (np.pad(rows, ((0, 0), (0, spare))) if spare else rows).view("<u4")
        total = total + words.astype(np.uint64) @ _keys(at + words.shape[1])[at:]
        at += words.shape[1]
    total = total ^ (total >> np.uint64(29))
    return total * np.uint64(0xBF58476D1CE4E5B9)


@lru_cache(maxsize=1024)
def _shape_salt(*shapes: tuple[int, ...]) -> int:
    return salt(*shapes)


@lru_cache(maxsize=64)
def _keys(words: int) -> NDArray[np.uint64]:
    # The raw stream of a bit generator never changes; a longer table starts with the shorter one.
    return np.random.Philox(_SEED).random_raw(2 * words).reshape(words, 2)
