"""A simulated store: a primary, its replica, what is on disk; and the links of servers to it.

`Node.commit` answers exactly as the script of recurra.server.store.commit, which a differential test holds it to. A
link is as the pipe of recurra.server.store: in order, and sent again after it broke; a break loses what was on its way,
from some command on, or some reply on. What a broken link had sent may still arrive.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import numpy as np

from recurra.server.store import record
from recurra.server.store.commit import APPLIED, DUPLICATE, MISSING
from recurra.wire.errors import NotReplicated, StoreFull, StoreUnavailable
from tests.simulation.loop import Process, Way

Array = np.ndarray
Answer = Any

TIMEOUT_SECONDS: Final = 1.0
_NOTHING: Final = bytes(record.HEADER.itemsize)


@dataclass
class Node:
    """One store's memory. `written`: told of each record that takes its place, after the one that was there."""

    now: Callable[[], float]
    written: Callable[[Node, bytes | None, bytes], None] = lambda *_: None
    records: dict[bytes, tuple[bytes, float]] = field(default_factory=dict)  # with when they expire
    log: list[tuple[bytes, bytes, float]] = field(default_factory=list)
    full: bool = False

    def get(self, key: bytes) -> bytes | None:
        there = self.records.get(key)
        if there is None or there[1] <= self.now():
            self.records.pop(key, None)
            return None
        return there[0]

    def commit(self, rows: Sequence[tuple[bytes, bytes, bytes, int]]) -> list[Answer]:
        """The script: for each session its key, the header that must be there, the new record, its time to live."""
        answers, written = list[Answer](), False
        for row in rows:  # once a script has written anything, were it nothing, the store lets it write on, full or not
            answers.append(self._commit(*row, full=self.full and not written))
            written |= not isinstance(answers[-1], StoreFull)
        return answers

    def _commit(self, key: bytes, expected: bytes, new: bytes, ttl_ms: int, *, full: bool) -> Answer:
        size = record.HEADER.itemsize
        there = (self.get(key) or b"")[:size]
        if self.matches(there, expected, new):
            if full:
                return StoreFull("the store has no memory left")
            self._set(key, new, ttl_ms)
            return APPLIED
        if there == b"":
            return MISSING
        if there == new[:size]:
            self.records[key] = self.records[key][0], self.now() + ttl_ms / 1000
            self.log.append((key, *self.records[key]))
            return DUPLICATE
        if full:
            return StoreFull("the store has no memory left")
        self.log.append((key, *self.records[key]))  # written with nothing, so that a WAIT waits for it
        return there

    @staticmethod
    def matches(there: bytes, expected: bytes, new: bytes) -> bool:
        """Whether what is there is what the writer expects."""
        return there == expected or (there == b"" and expected == _NOTHING)

    def _set(self, key: bytes, new: bytes, ttl_ms: int) -> None:
        there = self.get(key)
        self.records[key] = new, self.now() + ttl_ms / 1000
        self.log.append((key, *self.records[key]))
        self.written(self, there, new)

    def as_of(self, upto: int) -> Node:
        """The store as it was after so many writes."""
        node = Node(self.now, self.written, log=self.log[:upto])
        node.records = {key: (data, until) for key, data, until in node.log}
        return node


class Cluster:
    """The store as its servers see it: `primary`, with a replica that lags and a disk that lags.

    Attributes:
        replicated: how many of the primary's writes its replica has.
        on_disk: how many of them survive its death.
        lost: how many writes were lost so far, of those that were applied by a primary.
        stalled_until: nothing is answered before.
    """

    def __init__(
        self, random: Random, written: Callable[[bytes | None, bytes], None], replicated: Callable[[bytes], None]
    ) -> None:
        """`written`, `replicated`: told of each record that a primary, or the replica, takes."""
        self._random, self._written, self._replicated_record = random, written, replicated
        self.process = Process("store")
        self.primary = Node(asyncio.get_running_loop().time, self._wrote)
        self.links: list[Link] = []
        self.replicated = self.on_disk = 0
        self.lagging, self.lost, self.stalled_until = False, 0, 0.0
        self._moved = asyncio.Event()

    # ---- what befalls it

    def catch_up(self) -> None:
        """The replica and the disk get some of what they lack."""
        whole = len(self.primary.log)
        if not self.lagging:
            self._replicate(self._random.randint(self.replicated, whole))
        self.on_disk = self._random.randint(self.on_disk, whole)
        self.moved()

    def settle(self) -> None:
        """All is well again: the replica and the disk have everything."""
        self.lagging, self.stalled_until, self.primary.full = False, 0.0, False
        self._replicate(len(self.primary.log))
        self.on_disk = len(self.primary.log)
        for link in self.links:  # some may still lead to a primary that was replaced
            link.cut()
        self.moved()

    def _replicate(self, upto: int) -> None:
        for _, data, _ in self.primary.log[self.replicated : upto]:
            self._replicated_record(data)
        self.replicated = upto

    def moved(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def has_replicated(self, upto: int, node: Node) -> bool:
        """Wait until the replica of `node` has so many of its writes; no longer than WAIT does."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS / 2):
                while node is not self.primary or self.replicated < upto:
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    def fail_over(self) -> None:
        """The replica takes over as it is. Some servers only notice a little later, and write where it is lost."""
        self.lost += 1  # those see the store as it was, even if nothing was
        self._become(self.primary.as_of(self.replicated))
        for link in self.links:
            link.shake()

    def restart(self, *, durable: bool) -> None:
        """The primary dies, and comes back with what is on its disk."""
        self._restart(len(self.primary.log) if durable else self.on_disk)

    def restart_empty(self) -> None:
        self._restart(0)

    def _restart(self, upto: int) -> None:
        self._become(self.primary.as_of(upto))
        for link in self.links:
            link.cut()

    def _wrote(self, node: Node, there: bytes | None, new: bytes) -> None:
        self.lost += node is not self.primary
        self._written(there, new)

    def _become(self, node: Node) -> None:
        self.lost += len(self.primary.log) - len(node.log)
        node.full = self.primary.full
        self.primary = node
        self.replicated = self.on_disk = len(node.log)
        self.moved()


@dataclass(eq=False)
class Exchange:
    """A command, how it is answered by a node, and who waits for it."""

    ask: Callable[[Node], Awaitable[Answer]]
    answer: asyncio.Future[Answer]
    timer: asyncio.TimerHandle | None = None


class Lane:
    """One connection at a time, in order, both ways."""

    def __init__(self, cluster: Cluster, random: Random, owner: Process) -> None:
        self._cluster, self._random, self._owner = cluster, random, owner
        self._waiting: deque[Exchange] = deque()
        self._line: _Line | None = None
        self._connecting = False

    def send(self, ask: Callable[[Node], Awaitable[Answer]]) -> asyncio.Future[Answer]:
        loop = asyncio.get_running_loop()
        exchange = Exchange(ask, loop.create_future())
        exchange.timer = loop.call_later(TIMEOUT_SECONDS, self._expire, exchange)
        self._waiting.append(exchange)
        if self._line is not None:
            self._line.put(exchange)
        else:
            self._connect()
        return exchange.answer

    def cut(self) -> None:
        """The connection breaks; the next one is there a little later."""
        if self._line is not None:
            self._line.cut()
            self._line = None
        if self._waiting:
            self._connect()

    def _connect(self) -> None:
        if not self._connecting:
            self._connecting = True
            asyncio.get_running_loop().call_later(self._random.choice((0.001, 0.02, 0.2)), self._connected)

    def _connected(self) -> None:
        self._connecting = False
        if not self._owner.alive:
            return
        self._waiting = deque(each for each in self._waiting if not each.answer.done())
        self._line = _Line(self._cluster, self._random, self._answered)
        for exchange in self._waiting:
            self._line.put(exchange)

    def _answered(self, exchange: Exchange, reply: Answer) -> None:
        if self._waiting and self._waiting[0] is exchange:
            self._waiting.popleft()
        if exchange.timer is not None:
            exchange.timer.cancel()
        if not exchange.answer.done():
            exchange.answer.set_result(reply)

    def _expire(self, exchange: Exchange) -> None:
        if exchange.answer.done():
            return
        exchange.answer.set_exception(StoreUnavailable("the store did not answer in time; safe to retry"))
        exchange.answer.exception()
        if self._random.random() < 0.5:
            self.cut()


class _Line:
    """One connection: commands on their way, executed in order, and replies on their way back."""

    def __init__(self, cluster: Cluster, random: Random, answered: Callable[[Exchange, Answer], None]) -> None:
        self._cluster, self._random, self._answered = cluster, random, answered
        self._node = cluster.primary
        self._queue: asyncio.Queue[Exchange] = asyncio.Queue()
        self._open = True
        self._left: int | None = None  # how many more are executed once it is cut
        self._back = Way()
        cluster.process.begin(self._serve(), "connection to the store")

    def put(self, exchange: Exchange) -> None:
        self._queue.put_nowait(exchange)

    def cut(self) -> None:
        """What was answered but is still on its way back is lost, and the commands from some one on."""
        self._open = False
        self._left = self._random.randint(0, self._queue.qsize())
        self._queue.put_nowait(Exchange(_nothing, asyncio.get_running_loop().create_future()))

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while self._left is None or self._left > 0:
            exchange = await self._queue.get()
            if exchange.ask is _nothing:
                return
            await asyncio.sleep(self._random.choice((0.0001, 0.0002, 0.0005, 0.003)))
            if loop.time() < self._cluster.stalled_until:
                await asyncio.sleep(self._cluster.stalled_until - loop.time())
            if self._left is not None:
                if self._left <= 0:
                    return
                self._left -= 1
            reply = await exchange.ask(self._node)
            self._back.send(self._random.choice((0.0001, 0.0002, 0.002)), self._deliver, exchange, reply)

    def _deliver(self, exchange: Exchange, reply: Answer) -> None:
        if self._open:
            self._answered(exchange, reply)


async def _nothing(_: Node) -> Answer:
    return None


class Link:
    """A server's way to the store: the engine's seam."""

    def __init__(self, cluster: Cluster, random: Random, owner: Process) -> None:
        self._cluster, self._random = cluster, random
        self._usual, self._waiting = Lane(cluster, random, owner), Lane(cluster, random, owner)
        self._last: asyncio.Future[Answer] | None = None
        cluster.links.append(self)

    def close(self) -> None:
        self._cluster.links.remove(self)
        for lane in (self._usual, self._waiting):
            lane.cut()

    def cut(self) -> None:
        for lane in (self._usual, self._waiting):
            lane.cut()

    def shake(self) -> None:
        """The store is another one: this is noticed at once, or later."""
        if self._random.random() < 0.7:
            self.cut()
        else:
            asyncio.get_running_loop().call_later(self._random.uniform(0.0, 1.0), self.cut)

    def commit(self, keys: Array, expected: Array, records: Array, ttl_ms: Array, *, replicated: bool = False) -> Sent:
        rows = [
            (key.tobytes(), head.tobytes(), new.tobytes(), int(ttl))
            for key, head, new, ttl in zip(keys, expected, records, ttl_ms.tolist(), strict=True)
        ]

        async def ask(node: Node) -> list[Answer]:
            answers = node.commit(rows)
            if replicated and not await self._cluster.has_replicated(len(node.log), node):
                error = NotReplicated("too few replicas have the operation. It may be applied; safe to retry")
                return [answer if isinstance(answer, Exception) else error for answer in answers]
            return answers

        if not replicated:
            return Sent(self._usual.send(ask))
        self._last = self._waiting.send(ask)
        return Sent(self._last)

    async def read(self, keys: Array) -> list[Answer]:
        names = [key.tobytes() for key in keys]

        async def ask(node: Node) -> list[Answer]:
            return [node.get(name) for name in names]

        if self._last is not None and not self._last.done():
            await asyncio.wait([self._last])
        replies: list[Answer] = await self._usual.send(ask)
        return replies

    async def scan(self, prefix: bytes, cursor: int, count: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        async def ask(node: Node) -> Sequence[tuple[bytes, bytes]]:
            return [(key, found) for key in [*node.records] if key.startswith(prefix) and (found := node.get(key))]

        return 0, list(await self._usual.send(ask))


class Sent:
    """As the real one: to be awaited."""

    def __init__(self, answer: asyncio.Future[list[Answer]]) -> None:
        self._answer = answer

    def __await__(self) -> Generator[Any, None, list[Answer]]:
        replies: list[Answer] = yield from self._answer.__await__()
        return replies
