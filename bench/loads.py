"""Loads: N sessions that predict one timestep after another, by calls, by streams of one, and by frames.

Messages are made from the stubs, not the SDK, so that the client leaves the machine to the server.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc.aio
import numpy as np

from recurra.v1 import inference_pb2, inference_pb2_grpc, session_pb2
from recurra.wire.tensors import to_tensor

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
]


@dataclass
class Load:
    """What a load did. `latencies` in seconds, a message each."""

    timesteps: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)


class Sessions:
    """N sessions of the model "lstm" and their random input."""

    def __init__(self, address: str, count: int, features: int = 64, durability: str = "committed") -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._names = [f"{os.urandom(4).hex()}-{index}" for index in range(count)]
        self._input = np.random.default_rng(0).normal(size=(count, 1, features)).astype(np.float32)
        self._last = [b""] * count
        self._load = Load()
        self._options = inference_pb2.PredictOptions(
            durability=inference_pb2.Durability.Value(f"DURABILITY_{durability.upper()}")
        )

    async def close(self) -> None:
        await self._channel.close()

    async def unary(self, seconds: float) -> Load:
        """Each session calls again as soon as it is answered."""
        return await self._run(self._unary, seconds)

    async def streams(self, seconds: float) -> Load:
        """Each session has a stream of its own, one frame of one in flight."""
        return await self._run(lambda index, until: self._frames([index], until=until), seconds)

    async def frames(self, seconds: float) -> Load:
        """All sessions together in one frame, one frame in flight."""
        members = list(range(len(self._names)))
        return await self._run(lambda _, until: self._frames(members, until=until), seconds, 1)

    async def pairs(self, seconds: float) -> Load:
        """As frames, two in flight: the next one is on its way while the last one is computed."""
        members = list(range(len(self._names)))
        return await self._run(lambda _, until: self._frames(members, in_flight=2, until=until), seconds, 1)

    async def some_frames(self, count: int) -> None:
        """So many frames of all sessions."""
        await self._frames(list(range(len(self._names))), count=count)

    async def _run(
        self, one: Callable[[int, float], Awaitable[None]], seconds: float, count: int | None = None
    ) -> Load:
        self._load = Load()
        began = time.perf_counter()
        await asyncio.gather(*(one(index, began + seconds) for index in range(count or len(self._names))))
        self._load.seconds = time.perf_counter() - began
        return self._load

    def _count(self, timesteps: int, began: float) -> None:
        self._load.timesteps += timesteps
        self._load.latencies.append(time.perf_counter() - began)

    async def _unary(self, index: int, until: float) -> None:
        request = inference_pb2.PredictRequest(
            model="lstm", session=self._names[index], inputs=[to_tensor(self._input[index])]
        )
        while (began := time.perf_counter()) < until:
            new = os.urandom(16)
            request.operation.CopyFrom(session_pb2.Operation(id=new, after=self._last[index]))
            await self._stub.Predict(request)
            self._last[index] = new
            self._count(1, began)

    async def _frames(
        self, members: list[int], *, in_flight: int = 1, until: float = math.inf, count: int = sys.maxsize
    ) -> None:
        call, rows = self._stub.StreamPredict(), len(members)
        names = [self._names[index] for index in members]
        bind = inference_pb2.Bind(model="lstm", sessions=names, handles=range(rows))
        await call.write(inference_pb2.StreamPredictRequest(bind=bind))
        handles, tensor = np.arange(rows, dtype="<u4").tobytes(), to_tensor(self._input[members])
        last = b"".join(self._last[index] or bytes(16) for index in members)
        sent: deque[float] = deque()
        for number in itertools.count():
            if more := number < count and time.perf_counter() < until:
                new = os.urandom(16 * rows)
                frame = inference_pb2.Frame(
                    handles=handles, ids=new, afters=last, inputs=[tensor], options=self._options
                )
                sent.append(time.perf_counter())
                await call.write(inference_pb2.StreamPredictRequest(frame=frame))
                last = new
            if not sent:
                break
            if len(sent) == in_flight or not more:
                answer = (await call.read()).frame
                if answer.errors or answer.HasField("status"):
                    raise RuntimeError(str(answer.errors[:1] or answer.status))
                self._count(rows, sent.popleft())
        for place, index in enumerate(members):
            self._last[index] = last[16 * place : 16 * place + 16]
        await call.done_writing()
        await call.read()
