"""The commit: compare-and-set of sessions' records by their whole headers, and its commands packed by columns."""

from __future__ import annotations

from hashlib import sha1
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recurra.server.store.record import HEADER

Array = NDArray[Any]

APPLIED, DUPLICATE, MISSING = 1, 2, 3

# KEYS: the records. ARGV, for each: the header it must have (zeros: it must not be there), the new record, and its time
# to live in ms. Answers, for each: one of the codes above, the header that is there instead, or this one's error.
# Headers are compared for equality only: Lua numbers are doubles, and the order of strings depends on the locale.
SCRIPT: Final = f"""
local size = {HEADER.itemsize}
local nothing = string.rep('\\0', size)
local answers = {{}}
for i, key in ipairs(KEYS) do
  local expected, record, ttl = ARGV[3 * i - 2], ARGV[3 * i - 1], tonumber(ARGV[3 * i])
  local there = redis.pcall('GETRANGE', key, 0, size - 1)
  if there == expected or (there == '' and expected == nothing) then
    local set = redis.pcall('SET', key, record, 'PX', ttl)
    answers[i] = set.err and set or {APPLIED}
  elseif there == '' then
    answers[i] = {MISSING}
  elseif there == string.sub(record, 1, size) then
    redis.pcall('PEXPIRE', key, ttl)
    answers[i] = {DUPLICATE}
  else
    answers[i] = there
  end
end
return answers
""".strip().encode()
SHA: Final = sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()

_ROWS, _BYTES = 64, 1 << 20  # of one command: while its script runs the store answers nobody else
_TTL_DIGITS: Final = 13
_POWERS: Final = 10 ** np.arange(_TTL_DIGITS - 1, -1, -1, dtype=np.int64)


class Command(NamedTuple):
    """One command as it goes over the wire, uint8, and how many sessions it is for."""

    wire: NDArray[np.uint8]
    rows: int


def commands(keys: Array, expected: Array, records: Array, ttl_ms: Array) -> list[Command]:
    """EVALSHAs of many sessions each, as they go over the wire; all rows have the same length, so no row is touched.

    Args:
        keys: (N, K) uint8.
        expected: (N,) HEADER.
        records: (N, R) uint8.
        ttl_ms: (N,) int64.
    """
    together = max(1, min(_ROWS, _BYTES // max(1, records.shape[1])))
    head = expected.view(np.uint8).reshape(len(keys), HEADER.itemsize)
    ttl = (ttl_ms[:, None] // _POWERS % 10 + ord("0")).astype(np.uint8)
    starts = range(0, len(keys), together)
    return [_command(*(column[at : at + together] for column in (keys, head, records, ttl))) for at in starts]


def reads(keys: Array) -> NDArray[np.uint8]:
    """One GET a session, as they go over the wire, (N, bytes). `keys` is (N, K) uint8."""
    parts = [b"*2\r\n$3\r\nGET\r\n", *_bulk(keys)]
    return _fill(np.empty((len(keys), _width(parts)), np.uint8), parts)


def _command(keys: Array, head: Array, records: Array, ttl: Array) -> Command:
    """One EVALSHA: all keys, then each session's arguments."""
    rows = len(keys)
    start = b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$%d\r\n%d\r\n" % (3 + 4 * rows, SHA, len(str(rows)), rows)
    names, arguments = _bulk(keys), _bulk(head, records, ttl)
    names_end = len(start) + rows * _width(names)
    wire = np.empty(names_end + rows * _width(arguments), np.uint8)
    wire[: len(start)] = np.frombuffer(start, np.uint8)
    _fill(wire[len(start) : names_end].reshape(rows, -1), names)
    _fill(wire[names_end:].reshape(rows, -1), arguments)
    return Command(wire, rows)


def _bulk(*arguments: Array) -> list[bytes | Array]:
    """What goes over the wire for arguments of (N, bytes) each: columns, and bytes that are the same in every row."""
    return [part for each in arguments for part in (b"$%d\r\n" % each.shape[1], each, b"\r\n")]


def _width(parts: list[bytes | Array]) -> int:
    return sum(len(part) if isinstance(part, bytes) else part.shape[1] for part in parts)


def _fill(wire: NDArray[np.uint8], parts: list[bytes | Array]) -> NDArray[np.uint8]:
    at = 0
    for part in parts:
        column = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part
        wire[:, at : at + column.shape[-1]] = column
        at += column.shape[-1]
    return wire
