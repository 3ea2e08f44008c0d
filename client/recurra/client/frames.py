"""Frames: many sessions' chunks as columns of one message, and the stream that they travel on."""

# ruff: noqa: ASYNC109 - timeouts are part of every call's surface

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from recurra.client.channel import STREAM_PREDICT, Channel, Stream
from recurra.client.operation import Create
from recurra.v1 import inference_pb2, session_pb2, tensor_pb2
from recurra.wire.errors import RecurraError, from_status
from recurra.wire.tensors import to_array, to_tensor

Ids = NDArray[np.uint8]
"""(N, 16): one operation id a row; zeros: none."""
_MAX_IN_FLIGHT: Final = 64

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


def timestamp(moment: datetime) -> Timestamp:
    """The time as a message."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def row_errors(result: inference_pb2.FrameResult, rows: int) -> dict[int, RecurraError]:
    """Why rows of a frame of so many failed, by row."""
    if result.HasField("status"):
        return {row: from_status(result.status) for row in range(rows)}
    return {error.row: from_status(error.status) for error in result.errors}


class FrameStream:
    """One stream with sessions bound to the handles 0, 1, 2, ...; opened when needed, and again after it broke."""

    def __init__(self, channel: Channel, model: str, sessions: Sequence[str]) -> None:
        self._channel = channel
        self._bind = inference_pb2.StreamPredictRequest(
            bind=inference_pb2.Bind(model=model, sessions=sessions, handles=range(len(sessions)))
        )
        self._stream: Stream[inference_pb2.StreamPredictRequest, inference_pb2.StreamPredictResponse] | None = None
        self._tag = 0

    async def write(self, frame: inference_pb2.Frame, *, timeout: float) -> int:
        """Send a frame; returns the tag that its result will carry.

        Raises RecurraError; the stream is then given up.
        """
        try:
            if self._stream is None:
                self._stream = self._channel.open(STREAM_PREDICT)
                await self._stream.write(self._bind, timeout=timeout)
            self._tag += 1
            frame.tag = self._tag
            await self._stream.write(inference_pb2.StreamPredictRequest(frame=frame), timeout=timeout)
        except BaseException:
            self.cancel()
            raise
        return self._tag

    async def read(self, *, timeout: float) -> inference_pb2.FrameResult:
        """The next result, in any order of frames. Raises RecurraError; the stream is then given up."""
        assert self._stream is not None, "read before write"
        try:
            return (await self._stream.read(timeout=timeout)).frame
        except BaseException:
            self.cancel()
            raise

    async def exchange(
        self, frames: Sequence[inference_pb2.Frame], *, timeout: float
    ) -> list[inference_pb2.FrameResult]:
        """Send frames together and wait for all their results, given in the frames' order. Raises RecurraError."""
        tags: list[int] = []
        results: dict[int, inference_pb2.FrameResult] = {}
        while len(results) < len(frames):
            # Not all at once: the server may wait for its results to be read before it reads on.
            if len(tags) < len(frames) and len(tags) - len(results) < _MAX_IN_FLIGHT:
                tags.append(await self.write(frames[len(tags)], timeout=timeout))
                continue
            result = await self.read(timeout=timeout)
            results[result.tag] = result
        return [results[tag] for tag in tags]

    def cancel(self) -> None:
        """Give the stream up; what was sent on it may be applied or not."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
