"""Loads: N sessions that predict one timestep after another, by calls, by streams of one, by frames, by the SDK.

Messages are made from the stubs, not the SDK, but where it says so: the client leaves the machine to the server.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import grpc.aio
import numpy as np

from recurra.client import AsyncClient
from recurra.v1 import inference_pb2, inference_pb2_grpc, session_pb2, session_pb2_grpc
from recurra.wire.tensors import to_tensor

_CHANNEL: Final = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
]
_NONE: Final = bytes(16)

COMMITTED: Final = inference_pb2.PredictOptions(durability=inference_pb2.DURABILITY_COMMITTED)
OPTIONS: Final = {
    "committed": COMMITTED,
    "checkpointed": inference_pb2.PredictOptions(durability=inference_pb2.DURABILITY_CHECKPOINTED),
    # No durability keeps a state in memory alone: a what-if has the state from its slot and keeps nothing.
    "memory": inference_pb2.PredictOptions(commit=False),
}


def names(count: int) -> list[str]:
    """Session ids that nobody had before."""
    prefix = os.urandom(6).hex()
    return [f"{prefix}-{index}" for index in range(count)]


@dataclass
class Done:
    """What a load did. `latencies` in seconds, one a message."""

    timesteps: int = 0
    latencies: list[float] = field(default_factory=list)

    def count(self, timesteps: int, since: float) -> None:
        self.timesteps += timesteps
        self.latencies.append(time.perf_counter() - since)


class Sessions:
    """Sessions of a model and their random input. `shape`: of a timestep's input, without a batch axis.

    Loads run until `time.perf_counter()` says so. They raise RuntimeError where a frame is answered with an error.
    """

    def __init__(
        self, address: str, names: Sequence[str], *, model: str, shape: tuple[int, ...], durability: str = "committed"
    ) -> None:
        self._address, self._durability = address, durability
        self.channel = grpc.aio.insecure_channel(address, options=_CHANNEL)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.model, self.options = model, OPTIONS[durability]
        self.names, self.last = names, [_NONE] * len(names)
        self.input = np.random.default_rng(0).standard_normal((len(names), 1, *shape), np.float32)
        self._all = list(range(len(names)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.channel.close()

    async def begin(self) -> None:
        """A committed timestep each: the sessions are in the store, and hot."""
        await Stream(self, [self._all], options=COMMITTED).closed(count=1)

    async def unary(self, until: float) -> Done:
        """Each session calls again as soon as it is answered."""
        done = Done()
        await asyncio.gather(*(self._unary(index, until, done) for index in self._all))
        return done

    async def streams(self, until: float) -> Done:
        """Each session has a stream of its own, one timestep in flight."""
        done = Done()
        await asyncio.gather(*(Stream(self, [[index]], done).closed(until) for index in self._all))
        return done

    async def singles(self, until: float) -> Done:
        """One stream, on which each session has one timestep in flight, in a frame of its own."""
        return await Stream(self, [[index] for index in self._all]).closed(until)

    async def packed(self, until: float) -> Done:
        """The SDK's stream: a task a session that steps by itself; what comes together is packed into a frame."""
        done = Done()

        async def task(index: int) -> None:
            while (began := time.perf_counter()) < until:
                await stream.predict(self.names[index], self.input[index])
                done.count(1, began)

        async with (
            AsyncClient(self._address) as client,
            client.stream(self.model, durability=self._durability) as stream,
        ):
            await asyncio.gather(*map(task, self._all))
        return done

    async def frames(self, until: float) -> Done:
        """All sessions together in one frame, one frame in flight."""
        return await Stream(self, [self._all]).closed(until)

    async def pairs(self, until: float) -> Done:
        """As frames, two in flight: the next one is on its way while the last one is computed."""
        return await Stream(self, [self._all]).closed(until, in_flight=2)

    async def some_frames(self, count: int, *, in_flight: int = 1) -> Done:
        """So many frames of all sessions."""
        return await Stream(self, [self._all]).closed(count=count, in_flight=in_flight)

    async def in_turns(self, rows: int, until: float) -> Done:
        """Frames of so many sessions, two in flight, one after another through all sessions."""
        groups = [self._all[at : at + rows] for at in range(0, len(self._all), rows)]
        return await Stream(self, groups).turns(until)

    async def offered(self, kind: str, rate: float, seconds: float) -> Done:
        """Timesteps by a schedule, whatever is answered when: latencies count from the scheduled time.

        `kind`: "pairs", all sessions in a frame, or "singles", one session after another. `rate`: timesteps a second,
        in messages with exponential gaps.
        """
        groups = [self._all] if kind == "pairs" else [[index] for index in self._all]
        gap = len(groups[0]) / rate
        gaps = np.random.default_rng(1).exponential(gap, max(1, round(seconds / gap)))
        return await Stream(self, groups).open(np.cumsum(gaps).tolist())

    async def end(self, count: int) -> None:
        """End the first so many sessions, by a call each."""
        stub = session_pb2_grpc.SessionServiceStub(self.channel)
        requests = [session_pb2.EndSessionRequest(model=self.model, session=name) for name in self.names[:count]]
        await asyncio.gather(*(stub.EndSession(request) for request in requests))

    async def _unary(self, index: int, until: float, done: Done) -> None:
        request = inference_pb2.PredictRequest(
            model=self.model, session=self.names[index], inputs=[to_tensor(self.input[index])], options=self.options
        )
        while (began := time.perf_counter()) < until:
            new = os.urandom(16)
            after = b"" if self.last[index] == _NONE else self.last[index]
            request.operation.CopyFrom(session_pb2.Operation(id=new, after=after))
            await self.stub.Predict(request)
            if _keeps(self.options):
                self.last[index] = new
            done.count(1, began)


class Stream:
    """One StreamPredict call, on which groups of sessions send frames. A frame's tag is its number."""

    def __init__(
        self,
        sessions: Sessions,
        groups: list[list[int]],
        done: Done | None = None,
        *,
        options: inference_pb2.PredictOptions | None = None,
    ) -> None:
        self._sessions, self._groups, self._done = sessions, groups, done or Done()
        options = options or sessions.options
        self._keeps = _keeps(options)
        self._frames = [
            inference_pb2.Frame(
                handles=np.array(group, "<u4").tobytes(),
                inputs=[to_tensor(sessions.input[group])],
                afters=b"".join(sessions.last[index] for index in group),
                options=options,
            )
            for group in groups
        ]
        self._sent: dict[int, tuple[int, float]] = {}  # by tag: the group, and when it was due
        self._tags = itertools.count()
        self._call = sessions.stub.StreamPredict()

    async def closed(self, until: float = sys.float_info.max, *, count: int = sys.maxsize, in_flight: int = 1) -> Done:
        """Each group sends again as soon as it is answered, until then or `count` times."""
        left = [count] * len(self._groups)

        async def send(group: int) -> None:
            now = time.perf_counter()
            if left[group] and now < until:
                left[group] -= 1
                await self._send(group, now)

        await self._bind()
        for group in list(range(len(self._groups))) * in_flight:
            await send(group)
        while self._sent:
            await send(await self._answer())
        return await self._end()

    async def turns(self, until: float, *, in_flight: int = 2) -> Done:
        """The groups take turns to send, so many on their way at any time."""
        await self._bind()
        turns = itertools.cycle(range(len(self._groups)))
        while (now := time.perf_counter()) < until:
            await self._send(next(turns), now)
            if len(self._sent) == in_flight:
                await self._answer()
        while self._sent:
            await self._answer()
        return await self._end()

    async def open(self, times: list[float]) -> Done:
        """The groups take turns to send at these times, in seconds from now."""
        await self._bind()
        began = time.perf_counter()

        async def send() -> None:
            for group, due in zip(itertools.cycle(range(len(self._groups))), times, strict=False):
                await asyncio.sleep(began + due - time.perf_counter())
                await self._send(group, began + due)

        sending = asyncio.create_task(send())
        for _ in times:
            await self._answer()
        await sending
        return await self._end()

    async def _bind(self) -> None:
        handles = [index for group in self._groups for index in group]
        names = [self._sessions.names[index] for index in handles]
        bind = inference_pb2.Bind(model=self._sessions.model, sessions=names, handles=handles)
        await self._call.write(inference_pb2.StreamPredictRequest(bind=bind))

    async def _send(self, group: int, due: float) -> None:
        frame = self._frames[group]
        frame.tag, frame.ids = next(self._tags), os.urandom(16 * len(self._groups[group]))
        request = inference_pb2.StreamPredictRequest(frame=frame)  # a copy
        if self._keeps:
            frame.afters = frame.ids
        self._sent[frame.tag] = group, due
        await self._call.write(request)

    async def _answer(self) -> int:
        """The group that the next answer is for."""
        answer = await self._call.read()
        if answer is grpc.aio.EOF:
            raise RuntimeError(f"the stream ended: {await self._call.details()}")
        for status in [*(row.status for row in answer.frame.errors), answer.frame.status]:
            if status.code:
                raise RuntimeError(status.message)
        group, due = self._sent.pop(answer.frame.tag)
        self._done.count(len(self._groups[group]), due)
        return group

    async def _end(self) -> Done:
        await self._call.done_writing()
        await self._call.read()
        for group, frame in zip(self._groups, self._frames, strict=True):
            for place, index in enumerate(group):
                self._sessions.last[index] = frame.afters[16 * place : 16 * place + 16]
        return self._done


def _keeps(options: inference_pb2.PredictOptions) -> bool:
    return not options.HasField("commit") or options.commit
