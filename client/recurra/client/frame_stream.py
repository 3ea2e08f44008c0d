"""The stream that frames travel on."""

# ruff: noqa: ASYNC109 - timeouts are part of every call's surface

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recurra.client.channel import STREAM_PREDICT, Stream
from recurra.client.replicas import Replicas
from recurra.v1 import inference_pb2
from recurra.wire.errors import DeadlineExceeded, Draining, RecurraError, Unreachable, from_status

MAX_HANDLES: Final = 65_536
"""Of one stream; the server's limit."""

_Call = Stream[inference_pb2.StreamPredictRequest, inference_pb2.StreamPredictResponse]


class FrameStream:
    """One stream that many may send frames on; opened when needed, and again after it broke.

    A session's handle is its index in `names`, bound by the first frame that has it.
    """

    def __init__(self, replicas: Replicas, model: str, names: Sequence[str]) -> None:
        self._replicas, self._model, self._names = replicas, model, names
        self._stream: _Call | None = None
        self._asked = 0  # the replica that the stream leads to
        self._bound = np.zeros(0, bool)
        self._leaving: set[int] = set()
        self._writing = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None  # while there is anything to read
        self._awaited: dict[int, asyncio.Future[inference_pb2.FrameResult]] = {}  # by tag
        self._tag = 0

    @property
    def bound(self) -> bool:
        """Whether any session is bound at present."""
        return self._stream is not None and bool(self._bound.any())

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
            await self._bind(stream, np.frombuffer(frame.handles, "<u4"), timeout)
            if stream is not self._stream:
                raise Unreachable("the stream broke meanwhile; safe to retry")
            self._tag += 1
            frame.tag, result = self._tag, asyncio.get_running_loop().create_future()
            self._awaited[self._tag] = result
            if self._reading is None:
                self._reading = asyncio.create_task(self._read(stream))
            await self._write(stream, inference_pb2.StreamPredictRequest(frame=frame), timeout)
        return result

    def leave(self, handles: NDArray[np.int64]) -> None:
        """Handles of which no frame is on its way shall be freed, before the next frame at the latest."""
        if self._stream is not None:
            self._leaving.update(handles[self._bound[handles]].tolist())

    async def unbind(self, *, timeout: float) -> None:
        """Free now what shall be freed."""
        async with self._writing:
            if self._stream is not None:
                with suppress(RecurraError):  # the stream is given up, and all handles with it
                    await self._unbind(self._stream, timeout)

    def cancel(self) -> None:
        """Give the stream up; what was sent on it may be applied or not."""
        if self._stream is not None:
            self._break(self._stream, None)

    def _open(self) -> _Call:
        self._asked, self._stream = self._replicas.current, self._replicas.open(STREAM_PREDICT)
        self._bound, self._leaving = np.zeros(MAX_HANDLES, bool), set()
        return self._stream

    async def _bind(self, stream: _Call, handles: NDArray[np.uint32], timeout: float) -> None:
        await self._unbind(stream, timeout)
        new = handles[~self._bound[handles]].tolist()
        if new:
            bind = inference_pb2.Bind(model=self._model, sessions=[self._names[one] for one in new], handles=new)
            await self._write(stream, inference_pb2.StreamPredictRequest(bind=bind), timeout)
            self._bound[new] = True

    async def _unbind(self, stream: _Call, timeout: float) -> None:
        if self._leaving:
            leaving, self._leaving = list(self._leaving), set()
            self._bound[leaving] = False
            unbind = inference_pb2.Unbind(handles=leaving)
            await self._write(stream, inference_pb2.StreamPredictRequest(unbind=unbind), timeout)

    async def _write(self, stream: _Call, message: inference_pb2.StreamPredictRequest, timeout: float) -> None:
        try:
            await stream.write(message, timeout=timeout)
        except BaseException as error:
            self._break(stream, error)
            raise

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
