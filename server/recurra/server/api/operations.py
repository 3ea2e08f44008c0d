"""What a request says about its operation, as a block of the engine; and where a session stands, as a message."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Sequence
from functools import lru_cache
from typing import Any, Final

import grpc.aio
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from recurra.models import Model
from recurra.server.engine.digest import salt
from recurra.server.engine.engine import Engine
from recurra.server.engine.operation import Block, Create, Kind
from recurra.server.store import record
from recurra.v1 import inference_pb2, session_pb2
from recurra.wire.errors import InvalidArgument

Array = NDArray[Any]

ID_BYTES: Final = 16
_NO_ID: Final = bytes(ID_BYTES)
LONGEST_WAIT_SECONDS: Final = 300.0  # for calls without a deadline
_CREATE: Final = {
    session_pb2.CREATE_UNSPECIFIED: Create.IF_MISSING,
    session_pb2.CREATE_IF_MISSING: Create.IF_MISSING,
    session_pb2.CREATE_NEVER: Create.NEVER,
    session_pb2.CREATE_NEW: Create.NEW,
}
_DURABILITIES: Final = {
    inference_pb2.DURABILITY_UNSPECIFIED: "",
    inference_pb2.DURABILITY_COMMITTED: "committed",
    inference_pb2.DURABILITY_CHECKPOINTED: "checkpointed",
    inference_pb2.DURABILITY_REPLICATED: "replicated",
}
_LEAST_TTL_SECONDS, _LONGEST_TTL_SECONDS = 1e-3, 10 * 365 * 86_400


def session_name(name: str) -> str:
    """The name, if it may name a session. Raises InvalidArgument."""
    if not name:
        raise InvalidArgument("the session's name is empty")
    if len(name.encode()) > record.NAME_BYTES:
        raise InvalidArgument(f"a session's name has at most {record.NAME_BYTES} bytes, not {len(name.encode())}")
    if not name.isprintable():
        raise InvalidArgument("a session's name may not hold control characters")
    return name


def ids(data: bytes, count: int) -> NDArray[np.uint64]:
    """The ids of `count` operations as (N, 2) uint64. Raises InvalidArgument."""
    found = column(data, count, "id")
    if data == _NO_ID or (count > 1 and not found.any(1).all()):
        raise InvalidArgument("an id of zeros names no operation: it would mean that there is none")
    return found


def column(data: bytes, count: int, name: str) -> NDArray[np.uint64]:
    """`count` operation ids, zeros among them, as (N, 2) uint64. Raises InvalidArgument."""
    if len(data) != count * ID_BYTES:
        raise InvalidArgument(f"{name} has {len(data)} bytes; {count} x {ID_BYTES} are needed")
    return np.frombuffer(data, "<u8").reshape(count, 2)


def create(value: session_pb2.Create.ValueType) -> Create:
    """Raise InvalidArgument for a value this server does not know."""
    try:
        return _CREATE[value]
    except KeyError:
        raise InvalidArgument(f"create has the unknown value {value}") from None


def to_ms(time: Timestamp) -> int:
    """Milliseconds since the epoch."""
    return time.seconds * 1000 + time.nanos // 1_000_000


def set_ms(time: Timestamp, milliseconds: int) -> None:
    """The other way round."""
    time.seconds, time.nanos = milliseconds // 1000, milliseconds % 1000 * 1_000_000


@lru_cache(maxsize=1024)
def options_salt(kind: Kind, timesteps: int, return_states: bool, return_sequences: bool) -> int:  # noqa: FBT001
    """The digest of all that makes a predict besides its input."""
    return salt(kind, timesteps, return_states, return_sequences)


def durability(options: inference_pb2.PredictOptions, model: Model) -> str:
    """When an operation is to be answered: as it says, or as the model does. Raises InvalidArgument."""
    level = _DURABILITIES.get(options.durability)
    if level is None:
        raise InvalidArgument(f"durability {options.durability} is unknown to this server")
    return level or model.config.durability


def block(
    engine: Engine,
    operation: session_pb2.Operation,
    slot: int,
    *,
    kind: Kind,
    wait_seconds: float | None,
    given: dict[int, Array] | None = None,
    start: Sequence[Array] = (),
    timesteps: int = 0,
    return_states: bool = False,
    return_sequences: bool = True,
    durability: str = "",
    **more: Any,
) -> Block:
    """A block of one operation; `durability` as the model's if empty, `more` as it is. Raises InvalidArgument."""
    given = given or {}
    salted = options_salt(kind, timesteps, return_states, return_sequences)
    if given:
        salted = salt(salted, *(part for index in sorted(given) for part in (index, given[index])))
    if start:  # not what comes of it: another replica may compute that a little differently
        salted = salt(salted, "start", *(part for source in start for part in (source.shape, source)))
    wait = LONGEST_WAIT_SECONDS if wait_seconds is None else wait_seconds
    return Block(
        kind=kind,
        slots=np.array([slot]),
        ids=ids(operation.id or os.urandom(ID_BYTES), 1),
        afters=column(operation.after or _NO_ID, 1, "after"),
        given=given,
        start=list(start),
        replicated=(durability or engine.model.config.durability) == "replicated",
        timesteps=timesteps,
        return_states=return_states,
        return_sequences=return_sequences,
        salt=salted,
        create=create(operation.create),
        ttl_ms=_ttl_ms(operation, engine.model),
        told_expire_ms=to_ms(operation.expire_time) if operation.HasField("expire_time") else 0,
        deadline=asyncio.get_running_loop().time() + wait,
        **more,
    )


def done(engine: Engine, block_: Block) -> Awaitable[None]:
    """Submit a block of one operation; to be awaited until it is done. Raises what it was refused with."""
    engine.submit(block_)
    return finished(engine, block_)


async def finished(engine: Engine, block_: Block) -> None:
    """Wait for a block that was submitted. Raises what its first row was refused with."""
    try:
        await block_.done
    except asyncio.CancelledError:
        engine.cancel(block_)
        raise
    if 0 in block_.errors:
        raise block_.errors[0]


def session(model: Model, name: str, header: Array) -> session_pb2.Session:
    """Where a session stands: `header` is one HEADER row."""
    message = session_pb2.Session()
    stand(message, model, name, header)
    return message


def stand(message: session_pb2.Session, model: Model, name: str, header: Array) -> None:
    """As session, into a message that is there."""
    at = record.standing(header)
    message.model, message.version, message.session = model.name, model.version, name
    message.incarnation, message.last_id = at.incarnation, at.id
    message.position = message.durable_position = at.position
    message.created = bool(at.flags & record.CREATED)
    set_ms(message.update_time, at.update_ms)
    set_ms(message.expire_time, at.expire_ms)


def wait_seconds(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """How long the caller will wait yet, if he said so."""
    remaining: float | None = context.time_remaining()
    return remaining


def _ttl_ms(operation: session_pb2.Operation, model: Model) -> int:
    if not operation.HasField("ttl"):
        return int(model.config.session_ttl * 1000)
    seconds = operation.ttl.seconds + operation.ttl.nanos / 1e9
    if not _LEAST_TTL_SECONDS <= seconds <= _LONGEST_TTL_SECONDS:
        raise InvalidArgument(f"a ttl is from 1 ms to 10 years, not {seconds:g} s")
    return int(seconds * 1000)
