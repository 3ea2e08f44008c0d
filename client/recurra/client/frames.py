"""Frames: many sessions' chunks as columns of one message, and the stream that they travel on."""

# ruff: noqa: ASYNC109 - timeouts are part of every call's surface

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from copy import copy
from datetime import datetime
from typing import Final

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from recurra.client.channel import STREAM_PREDICT, Stream
from recurra.client.operation import Create
from recurra.client.replicas import Replicas
from recurra.v1 import inference_pb2, session_pb2, tensor_pb2
from recurra.wire.errors import DeadlineExceeded, Draining, RecurraError, Unreachable, from_status
from recurra.wire.tensors import to_array, to_tensor

Ids = NDArray[np.uint8]
"""(N, 16): one operation id a row; zeros: none."""
MAX_HANDLES: Final = 65_536
"""Of one stream; the server's limit."""

_Call = Stream[inference_pb2.StreamPredictRequest, inference_pb2.StreamPredictResponse]

CREATES = {
    Create.IF_MISSING: session_pb2.CREATE_IF_MISSING,
    Create.NEVER: session_pb2.CREATE_NEVER,
    Create.NEW: session_pb2.CREATE_NEW,
}


def columns(
    inputs: Sequence[tensor_pb2.Tensor],
    options: inference_pb2.PredictOptions,
    lengths: NDArray[np.uint32] | None = None,
) -> inference_pb2.Frame:
    """A frame without names: inputs (N, T, ...), lengths (N,)."""
    return inference_pb2.Frame(inputs=inputs, options=options, lengths=b"" if lengths is None else lengths.tobytes())


def take(frame: inference_pb2.Frame, places: NDArray[np.int64]) -> inference_pb2.Frame:
    """Some rows of a frame's columns, without names."""
    tensors = [to_tensor(to_array(tensor)[places], tensor.name) for tensor in frame.inputs]
    lengths = np.frombuffer(frame.lengths, "<u4")[places] if frame.lengths else None
    return columns(tensors, frame.options, lengths)


def normal(frame: inference_pb2.Frame) -> inference_pb2.Frame:
    """One row's columns as if all rows had been of its length, to tell whether the same is asked again."""
    [length] = np.frombuffer(frame.lengths, "<u4").tolist() or [0]
    plain = columns(frame.inputs, frame.options)
    if length and any(len(tensor.shape) > 1 and tensor.shape[1] != length for tensor in frame.inputs):
        plain.lengths = frame.lengths
    return plain


def put_names(
    frame: inference_pb2.Frame,
    *,
    handles: NDArray[np.uint32],
    ids: Ids,
    afters: Ids,
    create: Create,
    expire_time: datetime | None,
) -> inference_pb2.Frame:
    """The same frame, with each row's session and operation. `handles`: (N,)."""
    frame.handles, frame.ids = handles.astype("<u4").tobytes(), ids.tobytes()
    frame.afters = afters.tobytes() if afters.any() else b""
    frame.create = CREATES[create]
    if expire_time is not None:
        frame.expire_time.CopyFrom(timestamp(expire_time))
    return frame


def kind(frame: inference_pb2.Frame) -> object:
    """What frames have in common that can travel as one."""
    tensors = tuple((tensor.name, tensor.dtype, *tensor.shape[1:]) for tensor in frame.inputs)
    options = frame.options.SerializeToString(deterministic=True)
    return tensors, options, frame.create, bool(frame.lengths), bool(frame.afters)


def merge(frames: Sequence[inference_pb2.Frame]) -> inference_pb2.Frame:
    """Frames of one kind as one, their rows after each other."""
    first = frames[0]
    merged = inference_pb2.Frame(options=first.options, create=first.create)
    for column in ("handles", "ids", "afters", "lengths"):
        setattr(merged, column, b"".join(getattr(frame, column) for frame in frames))
    for place, tensor in enumerate(first.inputs):
        parts = [frame.inputs[place] for frame in frames]
        shape = [sum(part.shape[0] for part in parts), *tensor.shape[1:]]
        data = b"".join(part.data for part in parts)
        merged.inputs.append(tensor_pb2.Tensor(name=tensor.name, dtype=tensor.dtype, shape=shape, data=data))
    told = [frame.expire_time for frame in frames if frame.HasField("expire_time")]
    if told:
        merged.expire_time.CopyFrom(max(told, key=Timestamp.ToNanoseconds))
    return merged


def cut(result: inference_pb2.FrameResult, place: int) -> inference_pb2.FrameResult:
    """One row of a result that did not fail, as a result of its own."""
    one = inference_pb2.FrameResult(created=result.created[place : place + 1])
    one.positions = result.positions[8 * place : 8 * place + 8]
    one.durable_positions = result.durable_positions[8 * place : 8 * place + 8]
    one.incarnations = result.incarnations[16 * place : 16 * place + 16]
    one.outputs.extend(to_tensor(to_array(tensor)[place : place + 1], tensor.name) for tensor in result.outputs)
    one.states.extend(to_tensor(to_array(tensor)[place : place + 1], tensor.name) for tensor in result.states)
    if result.HasField("expire_time"):
        one.expire_time.CopyFrom(result.expire_time)
    return one


def timestamp(moment: datetime) -> Timestamp:
    """The time as a message."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def row_errors(result: inference_pb2.FrameResult) -> dict[int, RecurraError]:
    """Why rows of a frame failed, by row."""
    return {error.row: from_status(error.status) for error in result.errors}


class FrameStream:
    """One stream that many may send frames on; opened when needed, and again after it broke.

    A session's handle is its index in `names`, bound by the first frame that has it.
    """

    def __init__(self, replicas: Replicas, model: str, names: Sequence[str]) -> None:
        self._replicas, self._model, self._names = replicas, model, names
        self._stream: _Call | None = None
        self._asked = 0  # the replica that the stream leads to
        self._bound = np.zeros(0, bool)
        self._writing = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None  # while there is anything to read
        self._awaited: dict[int, asyncio.Future[inference_pb2.FrameResult]] = {}  # by tag
        self._tag = 0

    async def exchange(self, frame: inference_pb2.Frame, *, timeout: float) -> inference_pb2.FrameResult:
        """Send a frame and wait for its result. Raises RecurraError, also where the whole frame was refused."""
        try:
            async with asyncio.timeout(timeout):
                result = await (await self.send(frame, timeout=timeout))
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {timeout:.3g} s; safe to retry") from None
        finally:
            self._awaited.pop(frame.tag, None)
        if result.HasField("status"):
            raise self._refused(from_status(result.status))
        return result

    async def send(self, frame: inference_pb2.Frame, *, timeout: float) -> asyncio.Future[inference_pb2.FrameResult]:
        """Send a frame; its result is there later, or the RecurraError that the stream broke with.

        Raises RecurraError; the stream is then given up.
        """
        async with self._writing:
            stream = self._stream or self._open()
            try:
                await self._bind(stream, np.frombuffer(frame.handles, "<u4"), timeout)
                self._tag += 1
                frame.tag, result = self._tag, asyncio.get_running_loop().create_future()
                self._awaited[self._tag] = result
                if self._reading is None:
                    self._reading = asyncio.create_task(self._read(stream))
                await stream.write(inference_pb2.StreamPredictRequest(frame=frame), timeout=timeout)
            except BaseException as error:
                self._break(stream, error)
                raise
        return result

    async def unbind(self, handles: NDArray[np.int64], *, timeout: float) -> None:
        """Free handles of which no frame is on its way. Raises RecurraError; the stream is then given up."""
        async with self._writing:
            stream = self._stream
            if stream is None or not (bound := handles[self._bound[handles]]).size:
                return
            self._bound[bound] = False
            unbind = inference_pb2.Unbind(handles=bound.tolist())
            try:
                await stream.write(inference_pb2.StreamPredictRequest(unbind=unbind), timeout=timeout)
            except BaseException as error:
                self._break(stream, error)
                raise

    def cancel(self) -> None:
        """Give the stream up; what was sent on it may be applied or not."""
        if self._stream is not None:
            self._break(self._stream, None)

    def _open(self) -> _Call:
        self._asked, self._stream = self._replicas.current, self._replicas.open(STREAM_PREDICT)
        self._bound = np.zeros(MAX_HANDLES, bool)
        return self._stream

    async def _bind(
        self,
        stream: _Call,
        handles: NDArray[np.uint32],
        timeout: float,
    ) -> None:
        new = handles[~self._bound[handles]].tolist()
        if new:
            bind = inference_pb2.Bind(model=self._model, sessions=[self._names[one] for one in new], handles=new)
            await stream.write(inference_pb2.StreamPredictRequest(bind=bind), timeout=timeout)
            self._bound[new] = True

    async def _read(self, stream: _Call) -> None:
        """Hand out results as long as there are frames without one."""
        try:
            while self._awaited:
                result = (await stream.read(timeout=None)).frame
                awaited = self._awaited.pop(result.tag, None)
                if awaited is not None and not awaited.done():
                    awaited.set_result(result)
            self._reading = None
        except RecurraError as error:
            self._break(stream, error)
        except BaseException as error:
            self._break(stream, error)
            raise

    def _refused(self, error: RecurraError) -> RecurraError:
        """What a whole frame was refused with; a replica that is stopping is left."""
        if isinstance(error, Draining):
            self._replicas.failed(self._asked, error)
            self.cancel()
        return error

    def _break(
        self,
        stream: _Call,
        error: BaseException | None,
    ) -> None:
        """Leave the stream: every frame on it may be applied or not."""
        stream.cancel()
        if stream is not self._stream:
            return
        self._stream, reading, self._reading = None, self._reading, None
        if reading is not None and reading is not asyncio.current_task():
            reading.cancel()
        awaited, self._awaited = self._awaited, {}
        why = error if isinstance(error, RecurraError) else Unreachable("the stream was given up; safe to retry")
        for result in awaited.values():
            if not result.done():
                result.set_exception(copy(why))
                result.exception()  # nobody may be waiting for it
