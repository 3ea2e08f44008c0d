"""Many operations of one session in flight on one stream, answered in order."""

# ruff: noqa: ASYNC109 - timeouts are part of every call's surface

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass

from recurra.client.arrays import Inputs, Layout, lay_out
from recurra.client.chunk import Prediction, both, tensors, to_outputs, to_states
from recurra.client.delivery import Context, Delivery, doubt, row_reply
from recurra.client.frames import FrameStream, columns
from recurra.client.model import Model
from recurra.client.operation import Operation, Reply
from recurra.client.patience import Patience
from recurra.v1 import inference_pb2
from recurra.wire.errors import Mismatch, RecurraError


@dataclass(frozen=True)
class _Sent:
    operation: Operation
    chunk: Layout
    patience: Patience


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
        self._sent: deque[_Sent] = deque()  # unanswered, oldest first
        self._tags: deque[int] = deque()  # of the first of `sent`, those that are on the stream
        self._results: dict[int, inference_pb2.FrameResult] = {}  # that came before their turn

    async def run(
        self, chunks: AsyncIterable[Inputs], *, in_flight: int, timeout: float | None
    ) -> AsyncGenerator[Prediction, None]:
        """The outputs of each chunk, in order.

        A reply is looked for when the next chunk may not be sent before it, so a slow source of chunks delays outputs.
        """
        opened = False
        try:
            async for x in chunks:
                await self._send(x, timeout, alone=not opened)
                # The first operation opens the session, or settles what an earlier call left; it goes alone.
                while not opened or len(self._sent) >= in_flight or len(self._tags) < len(self._sent):
                    yield await self._first()
                    opened = True
                    if not self._sent:
                        break
            while self._sent:
                yield await self._first()
        finally:
            self._doubt()

    async def _send(self, x: Inputs, timeout: float | None, *, alone: bool) -> None:
        chunk, patience = lay_out(self._model, x), self._context.patience(timeout)
        request = columns(tensors(chunk, row=True), self._options)
        history = self._delivery.history
        if alone:
            self._sent.append(_Sent(history.name(request, request.ByteSize()), chunk, patience))
            return
        operation = history.queue(request, request.ByteSize())
        self._sent.append(_Sent(operation, chunk, patience))
        try:
            self._tags.append(await self._frames.write(self._delivery.frame(operation), timeout=patience.left))
        except RecurraError:
            self._break()

    async def _first(self) -> Prediction:
        """The answer of the oldest operation, and so of the session's next chunk."""
        head = self._sent[0]
        if self._tags:
            try:
                reply = await self._answer(head)
            except RecurraError as error:
                if not (error.retryable or isinstance(error, Mismatch)):
                    raise
                self._break()
                reply = await self._delivery.perform(head.operation, head.patience)
        else:
            reply = await self._delivery.perform(head.operation, head.patience)
        self._sent.popleft()
        result = reply.body
        assert isinstance(result, inference_pb2.FrameResult)
        sequences = self._options.return_sequences
        outputs = to_outputs(self._model, result.outputs, single=head.chunk.single, sequences=sequences, row=True)
        return both(outputs, to_states(result.states, row=True) if self._options.return_states else None)

    async def _answer(self, head: _Sent) -> Reply:
        """What the stream answers to the oldest operation; results that come before it are put by."""
        tag = self._tags[0]
        while tag not in self._results:
            result = await self._frames.read(timeout=head.patience.left)
            self._results[result.tag] = result
        reply = row_reply(self._results.pop(tag))
        self._delivery.history.applied(head.operation, reply.standing)
        self._tags.popleft()
        return reply

    def _break(self) -> None:
        """The stream is of no more use: every operation on it may be applied or not."""
        self._frames.cancel()
        self._tags.clear()
        self._results.clear()
        self._doubt()

    def _doubt(self) -> None:
        for one in self._sent:
            doubt(one.operation, None)
