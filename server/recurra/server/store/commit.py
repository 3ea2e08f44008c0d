"""The commit: compare-and-set of sessions' records by their whole headers, and its commands packed by columns."""

from __future__ import annotations

from hashlib import sha1
from typing import Any, Final, NamedTuple

import numpy as np
from hiredis import ReplyError
from numpy.typing import NDArray

from recurra.server.store.record import HEADER, TAG_BYTES

Array = NDArray[Any]

APPLIED, DUPLICATE, MISSING, UNSTAGED = 1, 2, 3, 4

# KEYS: the records. ARGV, for each: the header it must have (zeros: it must not be there), the new record, and its time
# to live in ms. Answers, for each: one of the codes above, the header that is there instead, or this one's error.
# Headers are compared for equality only: Lua numbers are doubles, and the order of strings depends on the locale.
# Something is written in any case, were it nothing: a replica refuses it, and a WAIT behind it waits for all that the
# answer rests on.
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
    local kept = redis.pcall('PEXPIRE', key, ttl)
    answers[i] = type(kept) == 'table' and kept or {MISSING}
  elseif there == string.sub(record, 1, size) then
    local kept = redis.pcall('PEXPIRE', key, ttl)
    answers[i] = type(kept) == 'table' and kept or {DUPLICATE}
  else
    local kept = redis.pcall('APPEND', key, '')
    answers[i] = type(kept) == 'table' and type(there) == 'string' and kept or there
  end
end
return answers
""".strip().encode()
SHA: Final = sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()

# The same for one record that was SET at a stage before: Lua copies what it is given, RENAME does not. KEYS: the
# record, its stage. ARGV: the header that must be there, the stage's, the time to live.
STAGED_SCRIPT: Final = f"""
local size = {HEADER.itemsize}
local there = redis.pcall('GETRANGE', KEYS[1], 0, size - 1)
if there == ARGV[1] or (there == '' and ARGV[1] == string.rep('\0', size)) then
  if redis.pcall('GETRANGE', KEYS[2], 0, size - 1) ~= ARGV[2] then
    return {UNSTAGED}
  end
  local moved = redis.pcall('RENAME', KEYS[2], KEYS[1])
  if moved.err then
    return moved
  end
  redis.pcall('PEXPIRE', KEYS[1], tonumber(ARGV[3]))
  return {APPLIED}
end
redis.pcall('UNLINK', KEYS[2])
if there == '' then
  local kept = redis.pcall('PEXPIRE', KEYS[1], tonumber(ARGV[3]))
  return type(kept) == 'table' and kept or {MISSING}
elseif there == ARGV[2] then
  local kept = redis.pcall('PEXPIRE', KEYS[1], tonumber(ARGV[3]))
  return type(kept) == 'table' and kept or {DUPLICATE}
end
local kept = redis.pcall('APPEND', KEYS[1], '')
return type(kept) == 'table' and type(there) == 'string' and kept or there
""".strip().encode()
STAGED_SHA: Final = sha1(STAGED_SCRIPT, usedforsecurity=False).hexdigest().encode()
STAGED_BYTES: Final = 64 << 10  # records of so many bytes are staged: docs/decisions/0018-large-records-are-staged.md
_STAGE_MS: Final = b"30000"
_STAGE: Final = np.frombuffer(b"recurra::stage:", np.uint8)

_ROWS, _BYTES = 64, 1 << 20  # of one command: while its script runs the store answers nobody else
_TTL_DIGITS: Final = 13
_POWERS: Final = 10 ** np.arange(_TTL_DIGITS - 1, -1, -1, dtype=np.int64)


class Command(NamedTuple):
    """Commands as they go over the wire, uint8: one for so many sessions, or, staged, two for each."""

    wire: NDArray[np.uint8]
    rows: int
    staged: bool = False

    @property
    def replies(self) -> int:
        return 2 * self.rows if self.staged else 1


def commands(keys: Array, expected: Array, records: Array, ttl_ms: Array) -> list[Command]:
    """EVALSHAs of many sessions each, as they go over the wire; all rows have the same length, so no row is touched.

    Args:
        keys: (N, K) uint8.
        expected: (N,) HEADER.
        records: (N, R) uint8.
        ttl_ms: (N,) int64.
    """
    together = max(1, min(_ROWS, _BYTES // max(1, records.shape[1])))
    columns = keys, _bytes(expected), records, _digits(ttl_ms)
    starts = range(0, len(keys), together)
    return [_command(*(column[at : at + together] for column in columns)) for at in starts]


def apart(keys: Array, expected: Array, records: Array, ttl_ms: Array) -> NDArray[np.uint8]:
    """As `commands`, with one EVALSHA a session: (N, bytes)."""
    start = b"*7\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n" % SHA
    return _each([start, *_bulk(keys, _bytes(expected), records, _digits(ttl_ms))])


def staged(keys: Array, expected: Array, records: Array, ttl_ms: Array) -> NDArray[np.uint8]:
    """As `apart`, with a SET to a stage and an EVALSHA for each session."""
    stages = np.concatenate([np.broadcast_to(_STAGE, (len(keys), len(_STAGE))), keys[:, -TAG_BYTES:]], 1)
    keep = b"$2\r\nPX\r\n$%d\r\n%b\r\n" % (len(_STAGE_MS), _STAGE_MS)
    move = b"*8\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n2\r\n" % STAGED_SHA
    arguments = _bulk(keys, stages, _bytes(expected), records[:, : HEADER.itemsize], _digits(ttl_ms))
    return _each([b"*5\r\n$3\r\nSET\r\n", *_bulk(stages, records), keep, move, *arguments])


def outcomes(replies: list[Any]) -> list[Any]:
    """What `staged` was answered, a row a session: why there is no stage, where that is all there is to say."""
    pairs = zip(replies[::2], replies[1::2], strict=True)
    return [kept if moved == UNSTAGED and _refused(kept) else moved for kept, moved in pairs]


def _refused(kept: Any) -> bool:
    """Whether a SET to a stage failed; in a hash slot that moves its key may belong elsewhere than the record's."""
    return isinstance(kept, ReplyError) and not str(kept).startswith("ASK ")


def reads(keys: Array) -> NDArray[np.uint8]:
    """One GET a session, as they go over the wire, (N, bytes). `keys` is (N, K) uint8."""
    return _each([b"*2\r\n$3\r\nGET\r\n", *_bulk(keys)])


def _bytes(headers: Array) -> Array:
    return headers.view(np.uint8).reshape(len(headers), HEADER.itemsize)


def _digits(ttl_ms: Array) -> Array:
    return (ttl_ms[:, None] // _POWERS % 10 + ord("0")).astype(np.uint8)


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


def _each(parts: list[bytes | Array]) -> NDArray[np.uint8]:
    rows = next(len(part) for part in parts if not isinstance(part, bytes))
    return _fill(np.empty((rows, _width(parts)), np.uint8), parts)


def _width(parts: list[bytes | Array]) -> int:
    return sum(len(part) if isinstance(part, bytes) else part.shape[1] for part in parts)


def _fill(wire: NDArray[np.uint8], parts: list[bytes | Array]) -> NDArray[np.uint8]:
    at = 0
    for part in parts:
        column = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part
        wire[:, at : at + column.shape[-1]] = column
        at += column.shape[-1]
    return wire
