"""A stretch of wire between two processes, TCP or unix, and what can happen to it: one proxy for all tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

_READ = 1 << 16


class Proxy:
    """Carries every connection to `to`, a unix socket's path or host:port.

    What is set holds for both ways and for all connections, those to come included, until it is set back or `heal`ed.

    Attributes:
        to: where the next connections go.
        address: where it is reached.
        delay_seconds: how long everything travels, one way.
        slice_bytes: how much is delivered at a time; 0: whatever comes.
        bytes_per_second: how fast, on each connection and way; 0: as fast as it comes.
    """

    def __init__(self, to: str) -> None:
        self.to, self.address = to, ""
        self._links: set[_Link] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._flowing, self._held = asyncio.Event(), False
        self.heal()

    @asynccontextmanager
    async def laid(self, at: str = "127.0.0.1:0") -> AsyncIterator[Self]:
        """Reached at `at`, a unix socket's path or host:port, inside the block."""
        if "/" in at:
            server = await asyncio.start_unix_server(self._connected, at)
            self.address = at
        else:
            host, _, port = at.rpartition(":")
            server = await asyncio.start_server(self._connected, host, int(port))
            self.address = f"{host}:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self
        self.heal()
        self.cut()
        if self._carrying:
            await asyncio.wait(self._carrying)

    def hold(self) -> None:
        """Let nothing pass, and keep it."""
        self._held = False
        self._flowing.clear()

    @property
    def held(self) -> bool:
        """Whether anything has come that does not pass."""
        return not self._flowing.is_set() and self._held

    def flow(self) -> None:
        self._flowing.set()

    async def flows(self) -> None:
        """Wait until it does."""
        await self._flowing.wait()

    def cut(self) -> None:
        """Break the connections that there are; what is on its way is lost."""
        for link in list(self._links):
            link.cut()

    def cut_before(self) -> None:
        """Break each connection that there is at its next request, which is lost."""
        for link in self._links:
            link.cutting = "before"

    def cut_after(self) -> None:
        """Break each connection that there is at its next reply, which is lost."""
        for link in self._links:
            link.cutting = "after"

    def lose_replies(self) -> None:
        """Lose all that comes back over the connections that there are."""
        for link in self._links:
            link.deaf = True

    def heal(self) -> None:
        """Be a good wire again; what was lost stays lost."""
        self.delay_seconds, self.slice_bytes, self.bytes_per_second = 0.0, 0, 0
        self.flow()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if "/" in self.to:
                there, to_there = await asyncio.open_unix_connection(self.to)
            else:
                there, to_there = await asyncio.open_connection(*self.to.rsplit(":", 1))
        except OSError:
            writer.transport.abort()
            return
        link, task = _Link(writer, to_there), asyncio.current_task()
        assert task is not None
        self._links.add(link)
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)
        try:
            await asyncio.gather(self._carry(link, reader, to_there), self._carry(link, there, writer, reply=True))
        finally:
            self._links.discard(link)
            link.cut()

    async def _carry(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, reply: bool = False
    ) -> None:
        """One way of one connection: what is read travels for a while, and is delivered in order."""
        travelling: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)
        loop = asyncio.get_running_loop()

        async def read() -> None:
            data = b"-"
            while data:
                try:
                    data = await reader.read(_READ)
                except OSError:
                    data = b""
                await travelling.put((loop.time() + self.delay_seconds, data))

        reading = asyncio.create_task(read())
        try:
            while True:
                due, data = await travelling.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                self._held = True
                await self._flowing.wait()
                if not data:
                    break
                if link.cutting == ("after" if reply else "before"):
                    link.cut()
                elif not (reply and link.deaf):
                    await self._deliver(writer, data)
        except OSError:
            pass
        finally:
            reading.cancel()
            writer.close()

    async def _deliver(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        while data:
            size = self.slice_bytes or len(data)
            if self.bytes_per_second:
                size = min(size, max(1, self.bytes_per_second // 100))
                await asyncio.sleep(size / self.bytes_per_second)
            writer.write(data[:size])
            await writer.drain()
            data = data[size:]


class _Link:
    """One connection, on both sides.

    Attributes:
        cutting: "before" or "after": it breaks at the next request, or reply.
        deaf: whether its replies are lost.
    """

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.cutting, self.deaf = "", False

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
