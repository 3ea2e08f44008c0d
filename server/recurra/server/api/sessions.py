"""SessionService: where sessions stand, and operations on their state other than predicting."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from recurra.models import Model
from recurra.server.api import inputs, operations
from recurra.server.engine.engine import Engine
from recurra.server.engine.operation import Block, Kind
from recurra.server.served import Served
from recurra.server.store import record
from recurra.v1 import session_pb2, session_pb2_grpc
from recurra.wire.errors import (
    InvalidArgument,
    ModelChanged,
    RecurraError,
    SessionClosed,
    SessionNotFound,
    Unimplemented,
    to_status,
)
from recurra.wire.tensors import to_tensor

Array = NDArray[Any]
Context = grpc.aio.ServicerContext[Any, Any]

_PAGE: Final = 100
_LARGEST_PAGE: Final = 1_000
_MOST_RESETS: Final = 4_096
_CURSORS: Final = 1 << 64  # the store's are below


class Sessions(session_pb2_grpc.SessionServiceServicer):
    """Reads go to the store; operations go through the engine, in order with the session's predicts."""

    def __init__(self, served: Served) -> None:
        self._served = served

    async def GetSession(  # noqa: N802
        self, request: session_pb2.GetSessionRequest, context: Context
    ) -> session_pb2.GetSessionResponse:
        del context
        engine = self._served.engine(request.model)
        found = await _live(engine, request.session)
        return session_pb2.GetSessionResponse(session=operations.session(engine.model, found.name, found.header[0]))

    async def ListSessions(  # noqa: N802
        self, request: session_pb2.ListSessionsRequest, context: Context
    ) -> session_pb2.ListSessionsResponse:
        del context
        engine = self._served.engine(request.model)
        token = request.page_token or "0"
        if request.page_size < 0 or not token.isdecimal() or len(token) > len(str(_CURSORS)) or int(token) >= _CURSORS:
            raise InvalidArgument("page_size is not negative, and page_token is one that this rpc gave")
        size, cursor = min(request.page_size or _PAGE, _LARGEST_PAGE), int(token)
        response = session_pb2.ListSessionsResponse()
        while len(response.sessions) < size:
            cursor, found = await engine.reader.scan(cursor, size)
            response.sessions.extend(operations.session(engine.model, name, header) for name, header in found)
            if not cursor:
                break
        response.next_page_token = str(cursor) if cursor else ""
        return response

    async def ResetState(  # noqa: N802
        self, request: session_pb2.ResetStateRequest, context: Context
    ) -> session_pb2.ResetStateResponse:
        engine = self._served.engine(request.model)
        names, signature = [operations.session_name(name) for name in request.sessions], engine.model.signature
        if not names or len(names) > _MOST_RESETS or len(set(names)) != len(names):
            raise InvalidArgument(f"a reset names from 1 to {_MOST_RESETS} sessions, each once")
        if len(request.operations) not in (0, len(names)):
            raise InvalidArgument(f"{len(request.operations)} operations for {len(names)} sessions")
        values = inputs.states(signature, request.values)
        chosen = inputs.chosen(signature, request.states)
        if not values.keys() <= set(chosen):
            raise InvalidArgument("a value is given for a state that is not reset")
        given = {at: values.get(at, signature.states[at].fresh[None]) for at in chosen}
        each = request.operations or [session_pb2.Operation()] * len(names)
        blocks = [
            operations.block(
                engine,
                operation,
                0,  # its slot is taken when it is submitted, which keeps it: the next name might get it otherwise
                kind=Kind.RESET,
                wait_seconds=operations.wait_seconds(context),
                given=given,
                whole=len(chosen) == len(signature.states),
            )
            for operation in each
        ]
        results = await asyncio.gather(
            *(_reset(engine, name, block) for name, block in zip(names, blocks, strict=True)), return_exceptions=True
        )
        response = session_pb2.ResetStateResponse()
        for name, block, result in zip(names, blocks, results, strict=True):
            if isinstance(result, RecurraError):
                response.results.add(status=to_status(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                response.results.add(session=_session(engine.model, name, block))
        return response

    async def GetState(  # noqa: N802
        self, request: session_pb2.GetStateRequest, context: Context
    ) -> session_pb2.GetStateResponse:
        del context
        engine = self._served.engine(request.model)
        model, found = engine.model, await _live(engine, request.session)
        if found.header["layout"].tobytes() != model.layout:
            raise ModelChanged("the session's state was written by a model with other states: reset the session")
        response = session_pb2.GetStateResponse(session=operations.session(model, found.name, found.header[0]))
        at = 0
        for spec in model.signature.states:
            values = np.frombuffer(found.state[at : at + spec.nbytes], spec.dtype).reshape(spec.shape)
            response.states.append(to_tensor(values, spec.name))
            at += spec.nbytes
        return response

    async def SetState(  # noqa: N802
        self, request: session_pb2.SetStateRequest, context: Context
    ) -> session_pb2.SetStateResponse:
        engine = self._served.engine(request.model)
        given = inputs.states(engine.model.signature, request.states)
        if not given:
            raise InvalidArgument("no state is given")
        block = await _change(engine, request, context, Kind.SET, given)
        return session_pb2.SetStateResponse(session=_session(engine.model, request.session, block))

    async def ForkSession(  # noqa: N802
        self, request: session_pb2.ForkSessionRequest, context: Context
    ) -> session_pb2.ForkSessionResponse:
        del request, context
        raise Unimplemented("this server does not fork sessions yet: GetState and SetState copy a state")

    async def EndSession(  # noqa: N802
        self, request: session_pb2.EndSessionRequest, context: Context
    ) -> session_pb2.EndSessionResponse:
        engine = self._served.engine(request.model)
        request.operation.create = session_pb2.CREATE_NEVER
        block = await _change(engine, request, context, Kind.END, {})
        return session_pb2.EndSessionResponse(session=_session(engine.model, request.session, block))


async def _live(engine: Engine, name: str) -> record.Record:
    found = await engine.look(operations.session_name(name))
    if found is None:
        raise SessionNotFound(f"model '{engine.model.name}' has no session '{name}'")
    if found.header["kind"][0] == record.CLOSED:
        last = found.header["id"].tobytes().hex()
        raise SessionClosed(f"session '{name}' was ended", last_id=last)
    return found


async def _reset(engine: Engine, name: str, block: Block) -> None:
    block.slots[0] = engine.slot(name)
    await operations.done(engine, block)


async def _change(
    engine: Engine,
    request: session_pb2.SetStateRequest | session_pb2.EndSessionRequest,
    context: Context,
    kind: Kind,
    given: dict[int, Array],
) -> Block:
    slot = engine.slot(operations.session_name(request.session))
    wait = operations.wait_seconds(context)
    block = operations.block(engine, request.operation, slot, kind=kind, wait_seconds=wait, given=given)
    await operations.done(engine, block)
    return block


def _session(model: Model, name: str, block: Block) -> session_pb2.Session:
    assert block.headers is not None  # it is done, and was not refused
    return operations.session(model, name, block.headers[0])
