"""Rows that did not go well, over a channel that answers as it is told."""

# ruff: noqa: ASYNC109 - the seam has timeouts

from __future__ import annotations

import asyncio
import os

import numpy as np

from recurra.client.delivery import Context, Delivery
from recurra.client.frame_stream import FrameStream
from recurra.client.frames import columns
from recurra.client.history import History
from recurra.client.patience import Chance, WallClock
from recurra.client.replicas import Replicas
from recurra.client.rows import settle
from recurra.client.window import Window
from recurra.v1 import inference_pb2
from recurra.wire.errors import Overloaded, to_status
from recurra.wire.tensors import to_tensor


class Told:
    """A channel and its stream: each frame is answered with the next of `answers`; None: it never is."""

    def __init__(self, answers) -> None:
        self.answers, self.results = answers, asyncio.Queue()

    def open(self, method):
        return self

    async def write(self, message, *, timeout):
        if message.WhichOneof("kind") == "frame":
            error = self.answers.pop(0)
            if error is not None:
                result = inference_pb2.FrameResult(tag=message.frame.tag)
                result.errors.add(row=0, status=to_status(error))
                self.results.put_nowait(inference_pb2.StreamPredictResponse(frame=result))

    async def read(self, *, timeout):
        return await self.results.get()

    def cancel(self) -> None: ...


async def test_an_attempt_without_an_answer_leaves_a_doubt_though_an_earlier_one_was_refused() -> None:
    replicas = Replicas([Told([Overloaded("come again", retry_after=0.0), None])])
    window, frames = Window(1 << 20), FrameStream(replicas, "model", ["session"])
    context = Context(replicas, Chance(WallClock()), window, 0.5)
    history = History(window, create="if_missing", entropy=os.urandom)
    request = columns([to_tensor(np.zeros((1, 1), np.float32), "x")], inference_pb2.PredictOptions())
    operation = history.name(request, 4)
    way = Delivery(context, history, "model", "session", frames=frames)
    outcomes = await settle(frames, {0: (way, operation, None)}, context.patience(None))
    frames.cancel()
    assert isinstance(outcomes[0], Overloaded)  # which tells more than that time ran out
    assert operation.unsure
    assert history.name(request, 4) is operation  # asking the same again is a retry
