"""Three replicas of the service, a store of a primary and one that follows it, and a proxy on each way between them."""

from __future__ import annotations

import asyncio
import mmap
import resource
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import redis

from recurra.server.store import record
from tests.models import graphs
from tests.proxy import Proxy
from tests.service.processes import ServerProcess, eventually
from tests.service.topologies import Node, free_ports
from tests.service.zoo import MODELS

REPLICAS = 3
_FLAGS = ("--checkpoint-seconds", "0.5", "--store-timeout-seconds", "2", "--drain-seconds", "5")


class Server:
    """One replica of the service.

    Attributes:
        front: the proxy before it.
        back: the proxy between it and the store.
        serving: whether it is up, and nobody is about to restart it.
    """

    def __init__(self, front: Proxy, back: Proxy, process: ServerProcess, clock: Path) -> None:
        self.front, self.back, self.process = front, back, process
        self.serving = True
        with clock.open("r+b") as file:
            self._clock = mmap.mmap(file.fileno(), 8)

    async def start(self) -> None:
        """Again and again, as whoever runs it would: it ends itself where it finds no store."""
        while not await asyncio.to_thread(self._started):
            await asyncio.to_thread(self.process.wait)
        self.front.to = self.process.address
        self.serving = True

    def _started(self) -> bool:
        try:
            self.process.start()
        except AssertionError:
            if "the store did not answer" not in self.process.log:
                raise
            return False
        return True

    def step_clock(self, seconds: float) -> None:
        """Put its clock ahead of the real time, or behind."""
        self._clock[:8] = struct.pack("<d", seconds)


class Stage:
    """Everything that runs.

    Attributes:
        links: by node, the proxy before it, for the one that follows it.
        primary: the node that the replicas use.
        follower: the other one.
    """

    def __init__(self, folder: Path, appendfsync: str) -> None:
        self._folder, self.appendfsync = folder, appendfsync
        self.servers: list[Server] = []
        self.links: dict[Node, Proxy] = {}

    @asynccontextmanager
    async def built(self) -> AsyncIterator[Stage]:
        async with AsyncExitStack() as stack:
            lines = ("save ''", "appendonly yes", f"appendfsync {self.appendfsync}", "repl-diskless-sync-delay 0")
            for port in free_ports(2):
                node = await asyncio.to_thread(Node, self._folder / str(port), port, *lines)
                stack.callback(node.close)
                self.links[node] = await stack.enter_async_context(Proxy(f"127.0.0.1:{port}").laid())
            self.primary, self.follower = self.links
            await self.follow()
            graphs.write(MODELS["lstm"].built, self._folder / "models", "lstm")
            self.servers = [await self._server(stack, at) for at in range(REPLICAS)]
            await asyncio.gather(*(server.start() for server in self.servers))
            yield self
            for server in self.servers:
                server.back.heal()

    async def _server(self, stack: AsyncExitStack, at: int) -> Server:
        clock = self._folder / f"clock-{at}"
        clock.write_bytes(bytes(8))
        front = await stack.enter_async_context(Proxy("").laid())
        back = await stack.enter_async_context(Proxy(f"127.0.0.1:{self.primary.port}").laid())
        process = ServerProcess(
            self._folder / "models",
            self._folder / f"replica-{at}",
            *_FLAGS,
            store=f"redis://{back.address}",
            program=("-m", "tests.chaos.serve", str(clock)),
        )
        stack.push_async_callback(asyncio.to_thread, process.close)
        return Server(front, back, process, clock)

    async def ask(self, node: Node, *words: object) -> Any:
        """The reply, of a node that lives."""
        replies: list[Any] = []
        await asyncio.to_thread(eventually, lambda: replies.append(node.ask(*words)) or replies[-1] is not None)
        return replies[-1]

    async def follow(self) -> None:
        """Have the follower copy the primary from now on."""
        host, port = self.links[self.primary].address.split(":")
        await self.ask(self.follower, "REPLICAOF", host, port)

    async def in_step(self, sessions: int) -> bool:
        """Whether the follower has all."""
        role, there = await self.ask(self.follower, "ROLE"), await self.ask(self.follower, "DBSIZE")
        return bool(role and role[-2:-1] == ["connected"] and there == sessions)

    async def positions(self, node: Node, sessions: Iterable[str]) -> list[int]:
        """Where a store has the sessions."""
        return await asyncio.to_thread(_positions, node, list(sessions))

    def limit_files(self, node: Node, room: int) -> None:
        """Let a node's append-only file grow by so many bytes and no more, as on a disk that fills up; -1: set free."""
        grown = max(file.stat().st_size for file in node.folder.glob("appendonlydir/*.incr.aof"))
        limit = grown + room if room >= 0 else resource.RLIM_INFINITY
        resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    async def rewritten(self, node: Node) -> None:
        """Have a node begin a new append-only file."""
        await asyncio.to_thread(node.client.bgrewriteaof)
        await asyncio.to_thread(eventually, lambda: not node.client.info("persistence")["aof_rewrite_in_progress"])


def _positions(node: Node, sessions: list[str]) -> list[int]:
    prefix = record.key_prefix("default", "lstm")
    with redis.Redis(port=node.port) as client:
        pipeline = client.pipeline(transaction=False)
        for session in sessions:
            key = record.key(prefix, record.identity("default", "lstm", session))
            pipeline.getrange(key, 0, record.HEADER.itemsize - 1)
        heads = pipeline.execute()
    return [int(np.frombuffer(head, record.HEADER)["position"][0]) if head else 0 for head in heads]
