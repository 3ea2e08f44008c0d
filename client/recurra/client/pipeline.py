"""Many operations of one session in flight on one stream, answered in order."""

# ruff: noqa: ASYNC109 - timeouts are part of every call's surface

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from recurra.client.arrays import Inputs, Layout, lay_out
from recurra.client.chunk import Prediction, both, tensors, to_outputs, to_states
from recurra.client.delivery import Context, Delivery, doubt, row_reply
from recurra.client.exposure import Exposure
from recurra.client.frame_stream import FrameStream
from recurra.client.frames import columns
from recurra.client.model import Model
from recurra.client.operation import Operation, Reply
from recurra.client.patience import Patience
from recurra.v1 import inference_pb2
from recurra.wire.errors import DeadlineExceeded, Mismatch, RecurraError

_ALONE: Final = np.zeros(1, np.int64)  # the one row


@dataclass
class _Sent:
    operation: Operation
    chunk: Layout
    patience: Patience
    result: asyncio.Future[inference_pb2.FrameResult] | None = None  # None: it is not on the stream


class Pipeline:
    """Sends chunks as frames of one row, some ahead of the first that is not answered.

    What breaks is settled one operation at a time: where the session stands tells which of them were applied.
    """

    def __init__(
        self,
        context: Context,
        delivery: Delivery,
        frames: FrameStream,
        model: Model,
        *,
        options: inference_pb2.PredictOptions,
    ) -> None:
        self._context, self._delivery, self._frames = context, delivery, frames
        self._model, self._options = model, options
        self._sent: deque[_Sent] = deque()  # unanswered, oldest first: all on the stream, or none
        self._taking: asyncio.Task[Inputs | None] | None = None
        self._durability, self._exposure = delivery.durability, Exposure(context.window, 1)

    async def run(
        self, chunks: AsyncIterable[Inputs], *, in_flight: int, timeout: float | None
    ) -> AsyncGenerator[Prediction, None]:
        """The outputs of each chunk, in order, each as soon as it is there."""
        source, opened, ended = aiter(chunks), False, False
        try:
            while self._sent or not ended:
                if self._taking is None and not ended and len(self._sent) < in_flight:
                    self._taking = asyncio.create_task(_take(source))
                await self._something()
                if self._taking is not None and self._taking.done():
                    x, self._taking = self._taking.result(), None
                    ended = x is None
                    if x is not None:
                        # The first operation opens the session, or settles what an earlier call left; it goes alone.
                        await self._send(x, timeout, alone=not opened)
                        opened = True
                while self._sent and ((result := self._sent[0].result) is None or result.done()):
                    yield await self._first()
            if len(self._exposure.any()):
                await self._delivery.restore(self._context.patience(timeout))
        finally:
            await _stop(self._taking)
            self._break()

    async def _something(self) -> None:
        """Wait until there is a chunk or a result."""
        try:
            head = self._sent[0] if self._sent else None
            waiting: set[asyncio.Future[Any]] = set() if self._taking is None else {self._taking}
            left = None
            if head is not None and head.result is not None:
                waiting.add(head.result)
                left = head.patience.left
            done, _ = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._break()
        except DeadlineExceeded:
            self._break()

    async def _send(self, x: Inputs, timeout: float | None, *, alone: bool) -> None:
        chunk, patience = lay_out(self._model, x), self._context.patience(timeout)
        request, history = columns(tensors(chunk, row=True), self._options), self._delivery.history
        name = history.name if alone else history.queue
        operation = name(request, request.ByteSize())
        long = self._exposure.long(_ALONE)
        self._delivery.durability = "committed" if long else self._durability
        unbroken = not alone and (not self._sent or self._sent[-1].result is not None)
        sent = _Sent(operation, chunk, patience)
        self._sent.append(sent)
        if unbroken:
            try:
                sent.result = await self._frames.send(self._delivery.frame(operation), timeout=patience.left)
            except RecurraError:
                self._break()

    async def _first(self) -> Prediction:
        """The answer of the oldest operation, and so of the session's next chunk."""
        head = self._sent[0]
        reply = await self._answer(head)
        self._exposure.told(_ALONE, durable=np.array([reply.standing.durable]))
        self._sent.popleft()
        result = reply.body
        assert isinstance(result, inference_pb2.FrameResult)
        sequences = self._options.return_sequences
        outputs = to_outputs(self._model, result.outputs, single=head.chunk.single, sequences=sequences, row=True)
        return both(outputs, to_states(result.states, row=True) if self._options.return_states else None)

    async def _answer(self, head: _Sent) -> Reply:
        """What the stream answered to the oldest operation; where that is no last word, what performing it gives."""
        if head.result is not None:
            try:
                reply = row_reply(head.result.result())
            except RecurraError as error:
                if not (error.retryable or isinstance(error, Mismatch)):
                    raise
                self._break()
            else:
                self._delivery.history.applied(head.operation, reply.standing)
                return reply
        return await self._delivery.perform(head.operation, head.patience)

    def _break(self) -> None:
        """Leave the stream: every operation on it may be applied or not."""
        self._frames.cancel()
        for one in self._sent:
            one.result = None
            doubt(one.operation, None)


async def _take(source: AsyncIterator[Inputs]) -> Inputs | None:
    return await anext(source, None)


async def _stop(task: asyncio.Task[Inputs | None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
