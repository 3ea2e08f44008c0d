"""A channel that loses what a script says, over a real one."""

# ruff: noqa: ASYNC109 - the seam has timeouts

from __future__ import annotations

from collections import deque

from recurra.client.channel import GET_MODEL
from recurra.wire.errors import Unreachable


class Faulty:
    """Each letter of `script` is the fate of one call or frame: . passes, x its request is lost, < its reply is.

    Attributes:
        asked: paths of the calls that were attempted.
        rows: how many each frame had.
        unbound: handles that were freed.
        cut_after: a stream is cut after so many results more; None: it is not.
        errors_reversed: a frame's errors come with the last row's first.
    """

    def __init__(self, channel, script: str = "") -> None:
        self.channel, self.script = channel, deque(script)
        self.asked: list[str] = []
        self.rows: list[int] = []
        self.unbound: list[int] = []
        self.cut_after: int | None = None
        self.errors_reversed = False

    def fate(self) -> str:
        return self.script.popleft() if self.script else "."

    async def call(self, method, request, *, timeout):
        if method is GET_MODEL:
            return await self.channel.call(method, request, timeout=timeout)
        self.asked.append(method.path.rpartition("/")[2])
        fate = self.fate()
        if fate == "x":
            raise Unreachable("its request is lost")
        response = await self.channel.call(method, request, timeout=timeout)
        if fate == "<":
            raise Unreachable("its reply is lost")
        return response

    def open(self, method):
        self.asked.append(method.path.rpartition("/")[2])
        return FaultyStream(self, self.channel.open(method))

    async def close(self) -> None:
        await self.channel.close()


class FaultyStream:
    def __init__(self, faulty: Faulty, stream) -> None:
        self.faulty, self.stream = faulty, stream
        self.losing = False

    async def write(self, message, *, timeout):
        self.faulty.unbound += message.unbind.handles
        if message.WhichOneof("kind") == "frame":
            fate = self.faulty.fate()
            self.faulty.rows.append(len(message.frame.handles) // 4)
            if fate == "x":
                raise Unreachable("its request is lost")
            self.losing = self.losing or fate == "<"
        await self.stream.write(message, timeout=timeout)

    async def read(self, *, timeout):
        message = await self.stream.read(timeout=timeout)
        if self.losing:
            raise Unreachable("its reply is lost")
        if self.faulty.cut_after is not None:
            self.faulty.cut_after -= 1
            if self.faulty.cut_after < 0:
                self.faulty.cut_after = None
                raise Unreachable("the stream is cut")
        if self.faulty.errors_reversed:
            message.frame.errors.sort(key=lambda error: -error.row)
        return message

    def cancel(self) -> None:
        self.stream.cancel()
