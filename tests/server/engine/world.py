"""A small world for the engine: a real store, a real model, replicas of the engine, and gates at its seams.

A gate holds a call of the store or of the runner until the test opens it, so that an interleaving is written down
instead of hoped for. What passes a gate is real. Like the one pipe they stand for, a replica's gates keep the order of
its commits and reads, and of their replies.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from redis.asyncio import Redis

from recurra.models import Model
from recurra.server.engine.device import Device
from recurra.server.engine.digest import salt
from recurra.server.engine.engine import Engine, Limits
from recurra.server.engine.operation import Block, Kind
from recurra.server.engine.pool import PoolRunner
from recurra.server.engine.runner import SlabRunner
from recurra.server.engine.seams import Runner, Step
from recurra.server.store import record
from recurra.server.store.sessions import RedisStore
from recurra.server.telemetry import Metrics
from recurra.wire.errors import StoreUnavailable
from tests.proxy import Proxy

Array = np.ndarray

PATIENCE = 20.0  # seconds that a test waits for what must come
NOTHING = bytes(16)


def new_id() -> bytes:
    return os.urandom(16)


@dataclass
class Gate:
    """Where one call waits. `reached`: it has come. `failure`: what it gets instead of its reply."""

    reached: asyncio.Event
    opened: asyncio.Event
    failure: Exception | None = None

    def open(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.opened.set()

    async def here(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.reached.wait()


class Gates:
    """The gates of one seam, by the name of what passes; a call takes the first one that is set up for it."""

    def __init__(self) -> None:
        self._set_up: defaultdict[str, deque[Gate]] = defaultdict(deque)
        self.passed: defaultdict[str, int] = defaultdict(int)

    def hold(self, what: str) -> Gate:
        """Hold the next call of this name that no other gate holds."""
        gate = Gate(asyncio.Event(), asyncio.Event())
        self._set_up[what].append(gate)
        return gate

    async def pass_(self, what: str) -> None:
        self.passed[what] += 1
        if self._set_up[what]:
            gate = self._set_up[what].popleft()
            gate.reached.set()
            await gate.opened.wait()
            if gate.failure is not None:
                raise gate.failure


class GatedStore:
    """The store with gates "commit" and "read", before it is asked, and "commit reply" and "read reply", after."""

    def __init__(self, store: RedisStore) -> None:
        self.gates = Gates()
        self._store = store
        self._asking, self._answering = asyncio.Lock(), asyncio.Lock()  # both are fair: what came first goes first

    def commit(self, *columns: Array, replicated: bool = False) -> asyncio.Task[list[Any]]:
        commit = partial(self._store.commit, replicated=replicated)
        passing = asyncio.create_task(self._pass("commit", commit, *columns))
        passing.add_done_callback(lambda done: done.cancelled() or done.exception())  # the engine may have stopped
        return passing

    async def read(self, keys: Array) -> list[Any]:
        return await self._pass("read", self._store.read, keys)

    async def scan(self, prefix: bytes, cursor: int, count: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        return await self._store.scan(prefix, cursor, count)

    async def _pass(self, what: str, ask: Callable[..., Awaitable[list[Any]]], *columns: Array) -> list[Any]:
        async with self._asking:
            await self.gates.pass_(what)
            asked = asyncio.ensure_future(ask(*columns))
        replies = await asked
        async with self._answering:
            await self.gates.pass_(f"{what} reply")
        return replies


class GatedRunner:
    """The runner with the gate "run".

    Attributes:
        runs: (rows, timesteps) of each run so far.
        real: the runner itself.
        spoil: sees the inputs and what a run gave, and may change or refuse it.
    """

    def __init__(self, runner: Runner) -> None:
        self.gates = Gates()
        self.runs: list[tuple[int, int]] = []
        self.spoil: Callable[[Sequence[Array], Step], Step] = lambda _, step: step
        self.real = runner
        self.gather, self.scatter, self.load = runner.gather, runner.scatter, runner.load
        self.start = runner.start

    def run(self, *arguments: Any, **more: Any) -> asyncio.Task[Step]:
        return asyncio.create_task(self._run(*arguments, **more))

    async def _run(self, inputs: Sequence[Array], *arguments: Any, **more: Any) -> Step:
        self.runs.append((inputs[0].shape[0], inputs[0].shape[1]))
        await self.gates.pass_("run")
        return self.spoil(inputs, await self.real.run(inputs, *arguments, **more))


class Clock:
    """The real time, and what a test puts on top; `stepped_seconds` only on the time of day."""

    def __init__(self) -> None:
        self.ahead_seconds, self.stepped_seconds = 0.0, 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_seconds

    def time(self) -> float:
        return time.time() + self.ahead_seconds + self.stepped_seconds


@dataclass
class Answer:
    """What one operation's client gets."""

    y: Array | None
    states: list[Array]
    position: int
    last_id: bytes
    created: bool
    duplicate: bool
    expire_ms: int
    durable: int


@dataclass
class Call:
    """An operation, or a row of many, that was submitted."""

    block: Block
    row: int = 0

    @property
    def id(self) -> bytes:
        return self.block.ids[self.row].tobytes()

    @property
    def done(self) -> bool:
        return self.block.done.done()

    async def answer(self) -> Answer:
        """Raises what it was refused with."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.shield(self.block.done)
        if self.row in self.block.errors:
            raise self.block.errors[self.row]
        head = self.block.headers[self.row]
        return Answer(
            self.block.outputs[0][self.row] if self.block.outputs else None,
            [state[self.row] for state in self.block.states],
            int(head["position"]),
            head["id"].tobytes(),
            bool(head["flags"] & record.CREATED),
            self.row in self.block.duplicates,
            int(head["expire_ms"]),
            int(head["position"] if self.block.durable is None else self.block.durable[self.row]),
        )


class Replica:
    """An engine with a pipe, slots and gates of its own."""

    def __init__(self, model: Model, store: RedisStore, runner: Runner, *, limits: Limits) -> None:
        self.clock, self.limits = Clock(), limits
        self.gated, self.runner = GatedStore(store), GatedRunner(runner)
        self.store, self.run = self.gated.gates, self.runner.gates
        metrics = Metrics().for_model(model.name)
        self.engine = Engine(model, self.runner, self.gated, self.clock, metrics, limits=limits)
        self.task = asyncio.create_task(self.engine.run())

    def block(
        self,
        sessions: Sequence[str],
        *,
        ids: Sequence[bytes] | None = None,
        afters: Sequence[bytes] | None = None,
        xs: Array | None = None,
        kind: Kind = Kind.PREDICT,
        wait_seconds: float = 60.0,
        **more: Any,
    ) -> Block:
        """Operations of these sessions, `xs` (N, T, ...); stateless if the sessions are empty strings."""
        count = len(sessions)
        inputs = [] if xs is None else [np.asarray(xs)]
        more.setdefault("timesteps", inputs[0].shape[1] if inputs else 0)
        given = more.get("given", {})
        parts = [part for index in sorted(given) for part in (index, given[index])]
        return Block(
            kind=kind,
            slots=np.array([self.engine.slot(session) if session else 0 for session in sessions], np.intp),
            ids=_ids(ids or [new_id() for _ in sessions]),
            afters=_ids(afters or [NOTHING] * count),
            inputs=inputs,
            salt=salt(kind, more["timesteps"], *parts),
            **({"ttl_ms": 86_400_000, "deadline": self.clock.monotonic() + wait_seconds} | more),
        )

    def many(self, sessions: Sequence[str], xs: Array, **more: Any) -> list[Call]:
        """Submit one block of predicts."""
        block = self.block(sessions, xs=xs, **more)
        self.engine.submit(block)
        return [Call(block, row) for row in range(len(sessions))]

    def predict(self, session: str, x: Array, *, id_: bytes | None = None, after: bytes = NOTHING, **more: Any) -> Call:
        """Submit one predict of `x` (T, ...)."""
        return self.many([session], x[None], ids=[id_ or new_id()], afters=[after], **more)[0]

    def change(
        self, kind: Kind, session: str, *, id_: bytes | None = None, after: bytes = NOTHING, **more: Any
    ) -> Call:
        """Submit a RESET, SET or END."""
        block = self.block([session], kind=kind, ids=[id_ or new_id()], afters=[after], **more)
        self.engine.submit(block)
        return Call(block)

    async def stands(self, session: str) -> tuple[bytes, int]:
        """The session's last id and its position, as the store has them."""
        found = await self.engine.reader.look(session)
        assert found is not None
        return found.header["id"][0].tobytes(), int(found.header["position"][0])

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


class World:
    """One store, and replicas of the engine on it."""

    def __init__(self, url: str, model: Model, stack: AsyncExitStack, states: str) -> None:
        self.url, self.model, self._stack, self.states = url, model, stack, states

    async def replica(
        self,
        *,
        model: Model | None = None,
        url: str = "",
        slots: int = 64,
        queue: int = 8192,
        max_batch: int = 0,
        checkpoint_seconds: float = 60.0,
        states: str = "",
    ) -> Replica:
        """One more replica; on a wire of the test's own where a `url` is given. `states`: on the host or the device."""
        model = model or self.model
        if max_batch:
            model = replace(model, max_batch=max_batch)
        store = RedisStore(url or self.url, timeout_seconds=PATIENCE, observe=lambda *_: None)
        self._stack.push_async_callback(store.close)
        device = Device()
        self._stack.callback(device.close)
        runner = make_runner(model, device, slots + 1, states or self.states)
        limits = Limits(queue=queue, slots=slots, checkpoint_seconds=checkpoint_seconds)
        made = Replica(model, store, runner, limits=limits)
        self._stack.push_async_callback(made.stop)
        return made

    async def wired(self, folder: Any) -> tuple[Replica, Proxy]:
        """A replica whose wire to the store is the test's."""
        wire = await self._stack.enter_async_context(
            Proxy(self.url.removeprefix("unix://")).laid(f"{folder}/wire.sock")
        )
        return await self.replica(url=f"unix://{wire.address}"), wire

    async def forget(self) -> None:
        """The store loses everything."""
        async with Redis.from_url(self.url) as client:
            await client.flushall()


def make_runner(model: Model, device: Device, slots: int, states: str) -> Runner:
    """With its states on the "host" or on the "device"."""
    if states == "device":
        return PoolRunner(model, device, slots=slots)
    return SlabRunner(model.signature, model.program, device, slots=slots, ragged=model.ragged, start=model.start)


@asynccontextmanager
async def world(url: str, model: Model, states: str = "host") -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        made = World(url, model, stack, states)
        await made.forget()
        yield made


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again, a round trip each, until `condition` holds."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            pass


async def turned(condition: Callable[[], Any]) -> bool:
    """Whether `condition` holds, once everything that is ready to go on has gone one step on."""
    await asyncio.sleep(0)
    return bool(condition())


def lost() -> StoreUnavailable:
    return StoreUnavailable("the reply is lost")


def _ids(ids: Sequence[bytes]) -> Array:
    return np.frombuffer(b"".join(ids), "<u8").reshape(len(ids), 2)
