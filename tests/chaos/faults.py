"""What goes wrong, one method a kind; each returns once its cause is over."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import numpy as np

from tests.chaos.load import Load
from tests.chaos.stage import Server, Stage
from tests.proxy import Proxy
from tests.service.topologies import Node

_DAYS = 86_400.0


class Kind(NamedTuple):
    """One kind of fault. `often`: it is drawn, beside others; `befall` gives False where it cannot be now."""

    name: str
    place: str
    often: int
    befall: Callable[[], Awaitable[object]]


class Faults:
    """Brings them about.

    Attributes:
        gone: acknowledged operations that a store no longer had when it came back, or another took its place.
        lost: those among them that it had promised to keep.
    """

    def __init__(self, stage: Stage, load: Load, seed: int) -> None:
        self._stage, self._load = stage, load
        self._rng = np.random.default_rng(seed)
        self._restarts: set[asyncio.Task[None]] = set()
        self.gone, self.lost = 0, 0
        self.kinds = [
            Kind("replica killed", "service", 2, self._replica_killed),
            Kind("replica stopped in order", "service", 1, self._replica_stopped),
            Kind("replica suspended", "service", 3, self._replica_suspended),
            Kind("replica's clock stepped by days", "service", 2, self._clock_stepped),
            Kind("store killed", "store", 2, self._store_killed),
            Kind("store suspended", "store", 3, self._store_suspended),
            Kind("store without its scripts", "store", 2, self._scripts_flushed),
            Kind("store out of memory", "store", 2, self._out_of_memory),
            Kind("store's disk full", "store", 2, self._disk_full),
            Kind("failover, in step", "store", 1, lambda: self._failover(0.0)),
            Kind("failover, behind", "store", 2, lambda: self._failover(self._draw(0.1, 0.5))),
            Kind("failover, the primary killed", "store", 1, lambda: self._failover(self._draw(0.0, 0.3), kill=True)),
            Kind("failover, the primary suspended", "store", 1, lambda: self._failover(0.0, suspend=True)),
            *(
                Kind(f"{what}: {way}", way, 1, lambda way=way, befall=befall: befall(self._wire(way)))
                for way in ("client - service", "service - store", "primary - follower")
                for what, befall in (
                    ("held", self._held),
                    ("reply lost", self._replies_lost),
                    ("cut before", self._cut_before),
                    ("cut after", self._cut_after),
                    ("delayed", self._delayed),
                    ("slow", self._slow),
                    ("sliced", self._sliced),
                )
            ),
        ]

    def draw(self) -> list[Kind]:
        """What befalls next: one, or two in different places at once."""
        often = np.array([kind.often for kind in self.kinds], float)
        first, second = self._rng.choice(len(self.kinds), 2, p=often / often.sum())
        one, other = self.kinds[int(first)], self.kinds[int(second)]
        return [one, other] if self._rng.random() < 0.25 and _apart(one, other) else [one]

    async def over(self) -> None:
        """Wait until all that was killed is back."""
        await asyncio.gather(*self._restarts)

    # ---- the service

    async def _replica_killed(self) -> bool:
        if server := self._spare():
            await asyncio.to_thread(server.process.kill)
            self._restart(server)
        return server is not None

    async def _replica_stopped(self) -> bool:
        if server := self._spare():
            await asyncio.to_thread(server.process.stop)
            self._restart(server)
        return server is not None

    async def _replica_suspended(self) -> bool:
        if server := self._spare():
            server.process.signal(signal.SIGSTOP)
            await asyncio.sleep(self._draw(0.05, 1.0))
            server.process.signal(signal.SIGCONT)
            server.serving = True
        return server is not None

    async def _clock_stepped(self) -> None:
        server = self._stage.servers[self._rng.integers(len(self._stage.servers))]
        server.step_clock(self._draw(-3, 3) * _DAYS)
        await asyncio.sleep(self._draw(0.1, 0.5))
        if self._rng.random() < 0.5:
            server.step_clock(0.0)

    def _spare(self) -> Server | None:
        """A replica that may go, as another one serves."""
        serving = [server for server in self._stage.servers if server.serving]
        if len(serving) < 2:
            return None
        server = serving[self._rng.integers(len(serving))]
        server.serving = False
        return server

    def _restart(self, server: Server) -> None:
        task = asyncio.create_task(server.start())
        self._restarts.add(task)

    # ---- the store

    async def _store_killed(self) -> None:
        node = self._stage.primary
        self._hold_backs()
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.start)
        await self._audit(node, promised=self._stage.appendfsync == "always")
        self._release_backs()

    async def _store_suspended(self) -> None:
        node = self._stage.primary
        node.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self._draw(0.05, 1.0))
        node.process.send_signal(signal.SIGCONT)

    async def _scripts_flushed(self) -> None:
        await self._stage.ask(self._stage.primary, "SCRIPT", "FLUSH")

    async def _out_of_memory(self) -> None:
        node = self._stage.primary
        await self._stage.ask(node, "CONFIG", "SET", "maxmemory", 1)
        await asyncio.sleep(self._draw(0.05, 0.5))
        await self._stage.ask(node, "CONFIG", "SET", "maxmemory", 0)

    async def _disk_full(self) -> None:
        """With `always` Valkey ends itself rather than answer for what it could not write.

        With `everysec` it goes on, and its file has a hole where a write was cut short: it needs another one (Valkey
        9.1 opens a file without O_APPEND that it begins while it runs, and truncates without seeking back).
        """
        node = self._stage.primary
        self._stage.limit_files(node, int(self._rng.integers(0, 20_000)))
        await asyncio.sleep(self._draw(0.1, 0.8))
        if node.lives:
            self._stage.limit_files(node, -1)
            await self._stage.rewritten(node)
            return
        self._hold_backs()
        await asyncio.to_thread(node.start)
        await self._audit(node, promised=self._stage.appendfsync == "always")
        self._release_backs()

    async def _failover(self, behind_seconds: float, *, kill: bool = False, suspend: bool = False) -> bool:
        """The follower takes over; replicas learn it one after the other, and write to the old one until then."""
        stage = self._stage
        old, new, link = stage.primary, stage.follower, stage.links[stage.primary]
        if not await stage.in_step(len(self._load.sessions)):
            return False
        if behind_seconds:
            link.hold()
            await asyncio.sleep(behind_seconds)
        if suspend:
            old.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(self._draw(0.05, 0.5))
        if kill:
            await asyncio.to_thread(old.kill)
        await stage.ask(new, "REPLICAOF", "NO", "ONE")
        stage.primary, stage.follower = new, old
        early = stage.servers[self._rng.integers(len(stage.servers))]
        early.back.to = f"127.0.0.1:{new.port}"
        early.back.cut()
        await asyncio.sleep(0.05)
        if suspend:  # it wakes up as the primary that it was, and some still write to it
            old.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.05)
        self._hold_backs()
        await self._audit(new, promised=False)
        for server in stage.servers:
            server.back.to = f"127.0.0.1:{new.port}"
        self._release_backs()
        link.heal()
        link.cut()
        if kill:
            await asyncio.to_thread(old.start)
        await stage.follow()
        return True

    def _hold_backs(self) -> None:
        for server in self._stage.servers:
            server.back.hold()

    def _release_backs(self) -> None:
        """What was held is lost with its connection."""
        for server in self._stage.servers:
            server.back.cut()
            server.back.flow()

    async def _audit(self, node: Node, *, promised: bool) -> None:
        """Count what a store has no longer, though it was acknowledged as committed."""
        sessions = [session for session in self._load.sessions if session.committed]
        acknowledged = [len(session.ys) for session in sessions]
        there = await self._stage.positions(node, [session.name for session in sessions])
        gone = sum(max(0, had - has) for had, has in zip(acknowledged, there, strict=True))
        self.gone += gone
        self.lost += gone * promised

    # ---- the wires

    def _wire(self, way: str) -> Proxy:
        server = self._stage.servers[self._rng.integers(len(self._stage.servers))]
        if way == "primary - follower":
            return self._stage.links[self._stage.primary]
        return server.front if way == "client - service" else server.back

    async def _held(self, wire: Proxy) -> None:
        wire.hold()
        await asyncio.sleep(self._draw(0.05, 0.8))
        wire.flow()

    async def _replies_lost(self, wire: Proxy) -> None:
        wire.lose_replies()
        await asyncio.sleep(self._draw(0.05, 0.3))
        wire.cut()

    async def _cut_before(self, wire: Proxy) -> None:
        wire.cut_before()
        await asyncio.sleep(0.05)

    async def _cut_after(self, wire: Proxy) -> None:
        wire.cut_after()
        await asyncio.sleep(0.05)

    async def _delayed(self, wire: Proxy) -> None:
        wire.delay_seconds = self._draw(0.01, 0.1)
        await asyncio.sleep(self._draw(0.2, 0.6))
        wire.delay_seconds = 0.0

    async def _slow(self, wire: Proxy) -> None:
        wire.bytes_per_second = int(self._draw(30_000, 300_000))
        await asyncio.sleep(self._draw(0.2, 0.6))
        wire.bytes_per_second = 0

    async def _sliced(self, wire: Proxy) -> None:
        wire.slice_bytes = int(self._rng.integers(1, 200))
        await asyncio.sleep(self._draw(0.1, 0.3))
        wire.slice_bytes = 0

    def _draw(self, least: float, most: float) -> float:
        return float(self._rng.uniform(least, most))


def _apart(one: Kind, other: Kind) -> bool:
    """Whether two can befall at once: neither waits for what the other one holds."""
    places = {one.place, other.place}
    return len(places) == 2 and not ("store" in places and places & {"service - store", "primary - follower"})
