"""A session's record in the store: a fixed header, then a body of name, state and kept reply.

All columns: an array of headers describes a batch, and `pack` makes a batch's records without touching a row. The
header names this very commit, so comparing headers as bytes tells whether a record is the one that was read, also after
the store was rolled back.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recurra.wire.errors import DataLoss

Array = NDArray[Any]

FORMAT: Final = 0x01524352  # "RCR", format 1
LIVE, CLOSED = 1, 2
CREATED, REPLY_DROPPED = 1, 2  # flags: the last operation created the session; its reply was too large to keep
NAME_BYTES: Final = 256
TAG_BYTES: Final = 34  # what a key ends in: its hash tag, braces and all
RECENT: Final = 4  # ids of earlier operations that a record remembers

HEADER: Final = np.dtype(
    [
        ("format", "<u4"),
        ("kind", "u1"),
        ("operation", "u1"),  # what the last operation was: engine.operation.Kind
        ("flags", "u1"),
        ("_", "u1"),
        ("identity", "<u8", 2),  # of tenant, model and session: a record found under another key is not believed
        ("layout", "<u8", 2),  # of the state: names, dtypes and shapes
        ("incarnation", "<u8", 2),  # the id of the operation that created the session
        ("id", "<u8", 2),
        ("recent", "<u8", (RECENT, 2)),  # the operations before that one, latest first
        ("digest", "<u8", 2),  # of the last operation's input and options
        ("commit", "<u8", 2),  # random
        ("position", "<u8"),
        ("update_ms", "<u8"),
        ("expire_ms", "<u8"),
        ("owner", "<u8", 2),  # the replica that may have acknowledged more than this; zeros: none
        ("owned_until_ms", "<u8"),
        ("checksum", "<u8"),  # the record's other 64-bit words, added up
        ("name_bytes", "<u2"),
        ("name_width", "<u2"),
        ("state_bytes", "<u4"),
        ("reply_bytes", "<u4"),
        ("reply_tag", "<u4"),  # of the form of the kept reply
    ]
)
_CHECKSUM: Final = dict(HEADER.fields or {})["checksum"][1] // 8  # which word it is
_STANDING: Final = struct.Struct("<6xB33x16s16s96xQQQ")  # the header's fields that Standing has
MISSING: Final = np.zeros(1, HEADER)  # the header of a session that is not there


class Record(NamedTuple):
    """One record, read. `header` is one HEADER row, `state` and `reply` are bytes."""

    header: Array
    name: str
    state: bytes
    reply: bytes


class Standing(NamedTuple):
    """What a session's client is told of its header."""

    flags: int
    incarnation: bytes
    id: bytes
    position: int
    update_ms: int
    expire_ms: int


def standing(header: Array) -> Standing:
    """Of one HEADER row; numpy takes six times as long field by field."""
    return Standing._make(_STANDING.unpack_from(header.tobytes()))


def identity(tenant: str, model: str, session: str) -> bytes:
    """16 bytes that name a session. None of the parts may hold a NUL."""
    return blake2b(f"{tenant}\0{model}\0{session}".encode(), digest_size=16).digest()


def key_prefix(tenant: str, model: str) -> bytes:
    """What the keys of a model's sessions start with."""
    return f"recurra:{tenant}:{model}:".encode()


def key(prefix: bytes, identity_: bytes) -> bytes:
    """The session's key. The hash tag is a digest, so no session id can steer where a key lives in a cluster."""
    return prefix + b"{" + identity_.hex().encode() + b"}"


def words(headers: Array) -> NDArray[np.uint64]:
    """(N,) HEADER as (N, words), the same memory. numpy copies words ten times faster than rows of fields."""
    return headers.view(np.uint64).reshape(len(headers), HEADER.itemsize // 8)


def headers(words_: NDArray[np.uint64]) -> Array:
    """The other way round."""
    fields: Array = words_.view(HEADER)[:, 0]
    return fields


def pack(headers: Array, names: Array, state: Array, reply: Array) -> NDArray[np.uint8]:
    """The records of a batch, as rows of bytes; fills in the headers' lengths and checksum.

    Args:
        headers: (N,) HEADER, changed in place; `name_bytes` is set already.
        names: (N, NAME_BYTES) uint8, zero-padded.
        state: (N, S) uint8.
        reply: (N, R) uint8.

    Returns:
        (N, bytes) uint8.
    """
    rows, size = len(headers), HEADER.itemsize
    width = _words(int(headers["name_bytes"].max()))
    state_end = size + width + state.shape[1]
    reply_end = state_end + reply.shape[1]
    records = np.empty((rows, size + _words(reply_end - size)), np.uint8)
    records[:, size : size + width] = names[:, :width]
    records[:, size + width : state_end] = state
    records[:, state_end:reply_end], records[:, reply_end:] = reply, 0
    headers["name_width"], headers["state_bytes"], headers["reply_bytes"] = width, state.shape[1], reply.shape[1]
    headers["checksum"] = 0
    records[:, :size] = headers.view(np.uint8).reshape(rows, size)
    as_words = records.view("<u8")
    headers["checksum"] = as_words[:, _CHECKSUM] = as_words.sum(1, dtype=np.uint64)
    return records


def unpack(data: bytes, identity_: bytes) -> Record:
    """Read a record. Raises DataLoss for one that is corrupt, another session's, or of a later format."""
    size = HEADER.itemsize
    header = np.frombuffer(data[:size].ljust(size, b"\0"), HEADER)
    fields = header[0]
    found = int(fields["format"])
    if found != FORMAT:
        if found > FORMAT and found & 0xFFFFFF == FORMAT & 0xFFFFFF:
            raise DataLoss(
                f"the session's record has format {found >> 24}, this release reads format 1: "
                "serve it with a newer release"
            )
        raise DataLoss("the session's record is not one of Recurra's")
    name_end = size + int(fields["name_width"])
    state_end = name_end + int(fields["state_bytes"])
    reply_end = state_end + int(fields["reply_bytes"])
    whole = (
        len(data) == size + _words(reply_end - size)
        and fields["identity"].tobytes() == identity_
        and int(np.frombuffer(data, "<u8").sum(dtype=np.uint64)) == 2 * int(fields["checksum"]) % (1 << 64)
    )
    try:
        name = data[size : size + int(fields["name_bytes"])].decode() if whole else ""
    except UnicodeDecodeError:
        whole = False
    if not whole:
        raise DataLoss(
            "the session's record in the store is corrupt: to start the session anew, delete its key, "
            f"which ends in {{{identity_.hex()}}}"
        )
    return Record(header, name, data[name_end:state_end], data[state_end:reply_end])


def _words(size: int) -> int:
    return -(-size // 8) * 8
