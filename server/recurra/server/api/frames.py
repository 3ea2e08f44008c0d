"""StreamPredict: frames of many sessions. Nothing here is done once a session, but binding it and telling its error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final, NamedTuple

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from recurra.models import Signature
from recurra.server.api import duplex, inputs, operations
from recurra.server.engine.engine import Engine
from recurra.server.engine.operation import Block, Kind, Rows
from recurra.server.served import Served
from recurra.server.store import record
from recurra.v1 import inference_pb2
from recurra.wire.errors import InvalidArgument, Overloaded, RecurraError, to_status
from recurra.wire.tensors import to_tensor

Array = NDArray[Any]

MAX_HANDLES: Final = 1 << 16
_MAX_FRAMES: Final = 64  # in flight on one stream; then it is not read on
_FEW_HANDLES: Final = 16
_NOT_BOUND, _NO_SLOT_YET = -2, -1


class _Pending(NamedTuple):
    """A frame on its way: its blocks, each with the rows of the frame that it holds."""

    tag: int
    rows: int
    parts: list[tuple[Block, Rows]]
    refused: RecurraError | None = None


class FrameStream:
    """One StreamPredict call: the handles bound on it, and its frames in flight."""

    def __init__(self, served: Served, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._served, self._context = served, context
        self._engine: Engine | None = None
        self._slots = np.zeros(_FEW_HANDLES, np.intp)  # by handle, of so many as were bound
        self._uses = np.full(_FEW_HANDLES, _NOT_BOUND)  # which use of its slot a session's is
        self._frame_handles = b""  # the last frame's, their slots, and what engine.slots.given was then
        self._frame_slots: NDArray[np.intp] = self._slots[:0]
        self._given = 0
        self._names: dict[int, str] = {}
        self._bound_names: set[str] = set()
        self._flying: set[Block] = set()
        self._done: asyncio.Queue[_Pending | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_MAX_FRAMES)
        self._open = 0  # frames not answered yet

    async def serve(self, requests: AsyncIterator[inference_pb2.StreamPredictRequest]) -> None:
        """Read until the client is done, answering meanwhile; what was read is answered, however the reading ends.

        Raises InvalidArgument for a malformed message, Draining where the server stops.
        """
        try:
            await duplex.serve(self._served, self._read(requests), self._write())
        finally:
            for block in [*self._flying]:
                self._bound().cancel(block)
            self._leave([*self._names])

    async def _read(self, requests: AsyncIterator[inference_pb2.StreamPredictRequest]) -> None:
        try:
            messages: Any = aiter(requests)  # a generator: grpc.aio leaks it and its last message if nobody closes it
            async with aclosing(messages) as incoming:
                with self._served.until_stopping():
                    async for request in incoming:
                        await self._take(request)
        finally:
            self._done.put_nowait(None)

    async def _take(self, request: inference_pb2.StreamPredictRequest) -> None:
        match request.WhichOneof("kind"):
            case "frame":
                await self._room.acquire()
                self._submit(request.frame)
                self._open += 1
            case "bind":
                self._bind(request.bind)
            case "unbind":
                self._unbind(request.unbind.handles)
            case _:
                raise InvalidArgument("a message with neither bind, unbind nor frame")

    def _bound(self) -> Engine:
        if self._engine is None:
            raise InvalidArgument("the first message of a stream is a bind")
        return self._engine

    def _bind(self, bind: inference_pb2.Bind) -> None:
        if self._engine is None:
            self._engine = self._served.engine(bind.model)
        elif bind.model not in ("", self._engine.model.name):
            raise InvalidArgument(f"this stream is bound to model '{self._engine.model.name}'")
        if len(bind.handles) != len(bind.sessions):
            raise InvalidArgument(f"{len(bind.handles)} handles for {len(bind.sessions)} sessions")
        self._frame_handles = b""
        for handle, name in zip(bind.handles, map(operations.session_name, bind.sessions), strict=True):
            if handle >= MAX_HANDLES:
                raise InvalidArgument(f"handle {handle}: handles are below {MAX_HANDLES}")
            if handle in self._names or name in self._bound_names:
                raise InvalidArgument(f"handle {handle} or session '{name}' is bound already")
            self._names[handle] = name
            self._bound_names.add(name)
            self._widen(handle)
            self._uses[handle] = _NO_SLOT_YET

    def _widen(self, handle: int) -> None:
        """Make the columns long enough for this handle: most streams have few."""
        more = (1 << handle.bit_length()) - len(self._uses)
        if more > 0:
            self._slots = np.concatenate((self._slots, np.zeros(more, np.intp)))
            self._uses = np.concatenate((self._uses, np.full(more, _NOT_BOUND)))

    def _unbind(self, handles: Any) -> None:
        self._frame_handles = b""
        for handle in handles:
            name = self._names.pop(handle, None)
            if name is None:
                raise InvalidArgument(f"handle {handle} is not bound")
            self._bound_names.remove(name)
        self._leave(list(handles))
        self._uses[list(handles)] = _NOT_BOUND

    def _leave(self, handles: list[int]) -> None:
        """Let their sessions go, if they still have the slots that they had here."""
        if self._engine is not None and handles:
            slots = self._slots[handles]
            self._engine.leave(slots[self._engine.slots.uses[slots] == self._uses[handles]])

    def _submit(self, frame: inference_pb2.Frame) -> None:
        """Queue a frame. One that is malformed is refused whole, and the stream goes on."""
        engine = self._bound()
        if not frame.handles or len(frame.handles) % 4:
            raise InvalidArgument("a frame's handles are N x uint32, N at least 1")
        rows = len(frame.handles) // 4
        parts: list[tuple[Block, Rows]] = []
        try:
            parts = self._blocks(engine, frame, rows)
            for block, _ in parts:
                engine.submit(block)
        except RecurraError as error:
            for block, _ in parts:
                if block.sequence:
                    engine.cancel(block)
            self._done.put_nowait(_Pending(frame.tag, rows, [], error))
            return
        pending, left = _Pending(frame.tag, rows, parts), {block for block, _ in parts}
        self._flying |= left

        def landed(block: Block) -> None:
            left.remove(block)
            self._flying.remove(block)
            if not left:
                self._done.put_nowait(pending)

        for block in left:
            block.landed = landed

    def _blocks(self, engine: Engine, frame: inference_pb2.Frame, rows: int) -> list[tuple[Block, Rows]]:
        level = operations.durability(frame.options, engine.model)
        arrays, timesteps = inputs.chunk(engine.model.signature, frame.inputs, rows)
        options = frame.options
        sequences = options.return_sequences if options.HasField("return_sequences") else True
        slots, ids = self._resolve(engine, frame.handles), operations.ids(frame.ids, rows)
        afters = operations.column(frame.afters or bytes(rows * operations.ID_BYTES), rows, "afters")
        parts = []
        for chosen, count in _by_length(engine.model.signature, frame.lengths, rows, timesteps):
            whole = len(chosen) == rows
            block = Block(
                kind=Kind.PREDICT,
                slots=slots if whole else slots[chosen],
                ids=ids if whole else ids[chosen],
                afters=afters if whole else afters[chosen],
                inputs=_cut(engine.model.signature, arrays, chosen, count, rows),
                timesteps=count,
                salt=operations.options_salt(Kind.PREDICT, count, options.return_states, sequences),
                commit=options.commit if options.HasField("commit") else True,
                checkpointed=level == "checkpointed",
                replicated=level == "replicated",
                return_states=options.return_states,
                return_sequences=sequences,
                create=operations.create(frame.create),
                ttl_ms=int(engine.model.config.session_ttl * 1000),
                told_expire_ms=operations.to_ms(frame.expire_time) if frame.HasField("expire_time") else 0,
                deadline=asyncio.get_running_loop().time() + operations.LONGEST_WAIT_SECONDS,
            )
            parts.append((block, chosen))
        return parts

    def _resolve(self, engine: Engine, named: bytes) -> NDArray[np.intp]:
        """The sessions' slots; a session that lost its slot meanwhile gets another."""
        if named == self._frame_handles and self._given == engine.slots.given:
            return self._frame_slots
        handles = np.frombuffer(named, "<u4")
        if handles.max() >= len(self._uses) or (self._uses[handles] == _NOT_BOUND).any():
            raise InvalidArgument("the frame names a handle that is not bound")
        if len(np.unique(handles)) != len(handles):
            raise InvalidArgument("the frame names a handle twice")
        old = self._slots[handles]
        lost = engine.slots.uses[old] != self._uses[handles]
        stale = handles[lost]
        if len(stale):
            if len(handles) >= len(engine.slots.uses):
                raise InvalidArgument(f"a frame of {len(handles)} sessions: send smaller ones, or raise --slots")
            engine.slots.touch(old[~lost])  # so that the others do not take theirs
        for handle in stale.tolist():
            slot = engine.slot(self._names[handle])
            self._slots[handle], self._uses[handle] = slot, engine.slots.uses[slot]
        slots: NDArray[np.intp] = self._slots[handles]
        if len(stale) and (engine.slots.uses[slots] != self._uses[handles]).any():
            raise Overloaded("the frame has more sessions than there are free slots", retry_after=0.1)
        self._frame_handles, self._frame_slots, self._given = named, slots, engine.slots.given
        return slots

    async def _write(self) -> None:
        """Answer frames as they land; a None means that no more come: stop once all are answered."""
        ending = False
        while self._open or not ending:
            pending = await self._done.get()
            if pending is None:
                ending = True
                continue
            response = inference_pb2.StreamPredictResponse(frame=_result(self._bound().model.signature, pending))
            await self._context.write(response)
            self._open -= 1
            self._room.release()


def _by_length(signature: Signature, lengths: bytes, rows: int, timesteps: int) -> list[tuple[Rows, int]]:
    """The frame's rows by how many timesteps of each count."""
    if not lengths:
        return [(np.arange(rows), timesteps)]
    counts = np.frombuffer(lengths, "<u4") if len(lengths) == 4 * rows else np.zeros(1, "<u4")
    if len(counts) != rows or counts.min() < 1 or counts.max() > timesteps:
        raise InvalidArgument(f"lengths are N x uint32, each from 1 to {timesteps}")
    sizes = np.unique(counts).tolist()
    for size in sizes:
        inputs.allow(signature, size)
    return [(np.flatnonzero(counts == size), size) for size in sizes]


def _cut(signature: Signature, arrays: list[Array], chosen: Rows, count: int, rows: int) -> list[Array]:
    if len(chosen) == rows:
        return [a[:, :count] if s.has_time_axis else a for a, s in zip(arrays, signature.inputs, strict=True)]
    return [a[chosen, :count] if s.has_time_axis else a[chosen] for a, s in zip(arrays, signature.inputs, strict=True)]


def _result(signature: Signature, pending: _Pending) -> inference_pb2.FrameResult:
    result = inference_pb2.FrameResult(tag=pending.tag)
    if pending.refused is not None:
        result.status.CopyFrom(to_status(pending.refused))
        return result
    for block, rows in pending.parts:
        for row, error in block.errors.items():
            result.errors.append(inference_pb2.RowError(row=int(rows[row]), status=to_status(error)))
    answered = [(block, rows) for block, rows in pending.parts if block.headers is not None]
    if not answered:
        return result
    headers = _columns([(b.headers, rows) for b, rows in answered if b.headers is not None], pending.rows)
    outputs = [
        _columns([(block.outputs[at], rows) for block, rows in answered], pending.rows)
        for at in range(len(answered[0][0].outputs))
    ]
    states = [
        _columns([(block.states[at], rows) for block, rows in answered], pending.rows)
        for at in range(len(answered[0][0].states))
    ]
    result.outputs.extend(to_tensor(o, spec.name) for o, spec in zip(outputs, signature.outputs, strict=True))
    if states:
        result.states.extend(to_tensor(s, spec.name) for s, spec in zip(states, signature.states, strict=True))
    result.positions = headers["position"].tobytes()
    if any(block.durable is not None for block, _ in answered):
        result.durable_positions = _columns(
            [(_durable(block), rows) for block, rows in answered], pending.rows
        ).tobytes()
    result.incarnations = headers["incarnation"].tobytes()
    result.created = (headers["flags"] & record.CREATED).astype(np.uint8).tobytes()
    operations.set_ms(result.expire_time, int(headers["expire_ms"].max()))
    return result


def _durable(block: Block) -> Array:
    assert block.headers is not None
    return block.headers["position"] if block.durable is None else block.durable


def _columns(parts: list[tuple[Array, Rows]], rows: int) -> Array:
    """The frame's column from its blocks' columns; where rows differ in timesteps, padded with zeros."""
    first = parts[0][0]
    if len(parts) == 1 and len(first) == rows:
        return first
    shape = np.max([array.shape[1:] for array, _ in parts], axis=0) if first.ndim > 1 else ()
    whole = np.zeros((rows, *(int(size) for size in shape)), first.dtype)
    for array, chosen in parts:
        into: Any = (chosen, *map(slice, array.shape[1:]))
        whole[into] = array
    return whole
