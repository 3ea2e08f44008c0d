"""The commit: compare-and-set of one session's record by its whole header, and its commands packed by columns."""

from __future__ import annotations

from hashlib import sha1
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.server.store.record import HEADER

Array = NDArray[Any]

APPLIED, DUPLICATE, MISSING = 1, 2, 3

# KEYS[1] the record; ARGV[1] the header it must have (zeros: it must not be there), ARGV[2] the new record,
# ARGV[3] its time to live in ms. Answers one of the codes above, or the header that is there instead.
# Headers are compared for equality only: Lua numbers are doubles, and the order of strings depends on the locale.
SCRIPT: Final = f"""
local size = {HEADER.itemsize}
local there = redis.call('GETRANGE', KEYS[1], 0, size - 1)
local expected = ARGV[1]
if there == expected or (there == '' and expected == string.rep('\\0', size)) then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', tonumber(ARGV[3]))
  return {APPLIED}
end
if there == string.sub(ARGV[2], 1, size) then
  redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[3]))
  return {DUPLICATE}
end
if there == '' then return {MISSING} end
return there
""".strip().encode()
SHA: Final = sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()

_TTL_DIGITS: Final = 13
_POWERS: Final = 10 ** np.arange(_TTL_DIGITS - 1, -1, -1, dtype=np.int64)


def commands(keys: Array, expected: Array, records: Array, ttl_ms: Array) -> NDArray[np.uint8]:
    """One EVALSHA a session, as they go over the wire; every row has the same length, so no row is touched.

    Args:
        keys: (N, K) uint8.
        expected: (N,) HEADER.
        records: (N, R) uint8.
        ttl_ms: (N,) int64.

    Returns:
        (N, bytes) uint8.
    """
    rows = len(keys)
    head = expected.view(np.uint8).reshape(rows, HEADER.itemsize)
    ttl = (ttl_ms[:, None] // _POWERS % 10 + ord("0")).astype(np.uint8)
    return _columns(rows, b"*7\r\n$7\r\nEVALSHA\r\n$40\r\n" + SHA + b"\r\n$1\r\n1\r\n", keys, head, records, ttl)


def reads(keys: Array) -> NDArray[np.uint8]:
    """One GET a session, as they go over the wire. `keys` is (N, K) uint8."""
    return _columns(len(keys), b"*2\r\n$3\r\nGET\r\n", keys)


def _columns(rows: int, prefix: bytes, *arguments: Array) -> NDArray[np.uint8]:
    parts: list[bytes | Array] = [prefix]
    for argument in arguments:
        parts += [b"$%d\r\n" % argument.shape[1], argument, b"\r\n"]
    wire = np.empty((rows, sum(len(p) if isinstance(p, bytes) else p.shape[1] for p in parts)), np.uint8)
    at = 0
    for part in parts:
        column = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part
        wire[:, at : at + column.shape[-1]] = column
        at += column.shape[-1]
    return wire
