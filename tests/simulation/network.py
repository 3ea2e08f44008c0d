"""The network between the SDK and the servicers: gRPC's calls and streams, late, lost, doubled and cut.

Messages travel as bytes. Calls overtake each other; the messages of one stream do not. What is lost is told as gRPC
tells it, or not at all, until time runs out. A server goes on with a call that its client has given up, for a while.
"""

# ruff: noqa: ASYNC109 - the seam has timeouts

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc

from recurra.client.grpc_channel import told
from recurra.wire.errors import DeadlineExceeded, RecurraError, Unreachable
from tests.simulation.loop import Way
from tests.simulation.replica import Replica

_DELAYS = (0.0, 0.0002, 0.0005, 0.001, 0.004)


@dataclass
class Weather:
    """How often, of messages, something happens.

    Attributes:
        lost, doubled, slow, silent: a call's request or reply; late for seconds; lost without a word.
        cut: a stream.
    """

    lost: float = 0.0
    doubled: float = 0.0
    slow: float = 0.0
    silent: float = 0.0
    cut: float = 0.0


class Aborted(Exception):
    """What a handler raises to end its call with a status."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        super().__init__(details)
        self.code, self.details, self.trailing = code, details, trailing

    def told(self) -> RecurraError:
        return told(self.code, self.details, self.trailing)


class _Context:
    """A servicer's context of one call."""

    def __init__(self, deadline: float | None, write: Callable[[Any], None] | None = None) -> None:
        self._deadline, self._write = deadline, write

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else self._deadline - asyncio.get_running_loop().time()

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> None:
        raise Aborted(code, details, trailing)

    async def write(self, message: Any) -> None:
        assert self._write is not None
        self._write(message)


class Network:
    """What all channels share.

    Attributes:
        replicas: those that are there, by place; None where none is.
        parted: places that clients cannot reach.
    """

    def __init__(self, random: Random, weather: Weather) -> None:
        self.random, self.weather = random, weather
        self.replicas: list[Replica | None] = []
        self.parted: set[int] = set()

    def at(self, place: int) -> Replica | None:
        replica = self.replicas[place]
        return replica if replica is not None and replica.serving and place not in self.parted else None

    def delay(self) -> float:
        if self.random.random() < self.weather.slow:
            return self.random.uniform(0.1, 3.0)
        return self.random.choice(_DELAYS)

    def happens(self, share: float) -> bool:
        return self.random.random() < share

    def channels(self) -> list[Channel]:
        return [Channel(self, place) for place in range(len(self.replicas))]


class Channel:
    """The SDK's seam: a way to one place."""

    def __init__(self, network: Network, place: int) -> None:
        self._network, self._place = network, place

    async def call(self, method: Any, request: Any, *, timeout: float) -> Any:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        data, deadline = request.SerializeToString(), loop.time() + timeout
        for _ in range(1 + self._network.happens(self._network.weather.doubled)):
            self._send(method, data, deadline, answer)
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {timeout:.3g} s; safe to retry") from None

    def _send(self, method: Any, data: bytes, deadline: float, answer: asyncio.Future[Any]) -> None:
        network, loop = self._network, asyncio.get_running_loop()
        if network.happens(network.weather.silent):
            return
        lost = network.happens(network.weather.lost)

        def arrived() -> None:
            replica = network.at(self._place)
            if replica is None or lost:
                loop.call_later(network.delay(), _fail, answer, Unreachable("no connection; safe to retry"))
                return
            call = replica.process.begin(
                replica.handlers[method.path].unary_unary(data, _Context(deadline)), method.path
            )
            call.add_done_callback(lambda done: self._reply(replica, method, done, answer))
            answer.add_done_callback(
                lambda done: done.cancelled() and loop.call_later(network.delay(), call.cancel) and None
            )

        loop.call_later(network.delay(), arrived)

    def _reply(self, replica: Replica, method: Any, call: asyncio.Task[Any], answer: asyncio.Future[Any]) -> None:
        """In the server's process: the call is done."""
        network, loop = self._network, asyncio.get_running_loop()
        error = None if call.cancelled() else call.exception()
        if network.happens(network.weather.silent):
            return
        if call.cancelled() or not replica.process.alive or network.happens(network.weather.lost):
            loop.call_later(network.delay(), _fail, answer, Unreachable("the connection broke; safe to retry"))
            return
        if error is None:
            response = method.response.FromString(call.result().SerializeToString())
            loop.call_later(network.delay(), lambda: answer.done() or answer.set_result(response))
        else:
            assert isinstance(error, Aborted), error
            loop.call_later(network.delay(), _fail, answer, error.told())

    def open(self, method: Any) -> Stream:
        return Stream(self._network, self._place, method)

    async def close(self) -> None: ...


def _fail(answer: asyncio.Future[Any], error: RecurraError) -> None:
    if not answer.done():
        answer.set_exception(error)


class Stream:
    """One stream: two queues that each end knows, and messages on their way between, in order."""

    def __init__(self, network: Network, place: int, method: Any) -> None:
        self._network, self._place, self._method = network, place, method
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._responses: asyncio.Queue[Any] = asyncio.Queue()
        self._there, self._back, self._gone = Way(), Way(), False
        self._broken: RecurraError | None = None
        self._call: asyncio.Task[Any] | None = None
        self._replica: Replica | None = None
        self._later(self._arrived)

    async def write(self, message: Any, *, timeout: float) -> None:
        await asyncio.sleep(0)
        if self._broken is not None:
            raise self._broken
        self._later(self._requests.put_nowait, message.SerializeToString())
        if self._network.happens(self._network.weather.cut):
            self._cut()

    async def read(self, *, timeout: float | None) -> Any:
        try:
            async with asyncio.timeout(timeout):
                message = await self._responses.get()
        except TimeoutError:
            self.cancel()
            raise DeadlineExceeded("no answer in time; safe to retry") from None
        if isinstance(message, RecurraError):
            self._broken = message
            self._responses.put_nowait(message)
            raise message
        return self._method.response.FromString(message)

    def cancel(self) -> None:
        self._break(Unreachable("the stream was given up; safe to retry"))
        asyncio.get_running_loop().call_later(self._network.delay(), self._end)

    # ---- on its way

    def _later(self, act: Callable[..., Any], *arguments: Any) -> None:
        self._there.send(self._network.delay(), act, *arguments)

    def _later_back(self, act: Callable[..., Any], *arguments: Any) -> None:
        self._back.send(self._network.delay(), act, *arguments)

    def _arrived(self) -> None:
        replica = self._replica = self._network.at(self._place)
        if self._gone:
            return
        if replica is None:
            self._later_back(self._break, Unreachable("no connection; safe to retry"))
            return
        handler, context = replica.handlers[self._method.path].stream_stream, _Context(None, self._write)
        self._call = replica.process.begin(handler(self._asked(), context), self._method.path)
        self._call.add_done_callback(self._ended)

    async def _asked(self) -> AsyncGenerator[Any]:
        """In the server: the requests."""
        while True:
            yield self._method.request.FromString(await self._requests.get())

    def _write(self, message: Any) -> None:
        """In the server: a response goes out."""
        assert self._replica is not None
        if self._replica.process.alive:
            self._later_back(self._came, message.SerializeToString())
            if self._network.happens(self._network.weather.cut):
                self._cut()

    def _came(self, data: bytes) -> None:
        if self._broken is None:
            self._responses.put_nowait(data)

    def _ended(self, call: asyncio.Task[Any]) -> None:
        """In the server: the call is over."""
        assert self._replica is not None
        error = None if call.cancelled() else call.exception()
        if not self._replica.process.alive:
            error = None
        assert error is None or isinstance(error, Aborted), error
        why = error.told() if error is not None else Unreachable("the stream ended; safe to retry")
        self._later_back(self._break, why)

    def _cut(self) -> None:
        """The connection breaks; each end learns it in its own time."""
        loop = asyncio.get_running_loop()
        loop.call_later(self._network.delay(), self._break, Unreachable("the connection broke; safe to retry"))
        loop.call_later(self._network.delay(), self._end)

    def _break(self, why: RecurraError) -> None:
        """At the client."""
        if self._broken is None:
            self._broken = why
            self._responses.put_nowait(why)

    def _end(self) -> None:
        """At the server."""
        self._gone = True
        if self._call is not None:
            self._call.cancel()
