"""Users of the SDK, and one who knows the protocol by heart; each checks every reply that he gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing, suppress
from random import Random
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recurra.client import AsyncClient, BatchError
from recurra.client.channel import PREDICT
from recurra.client.patience import Chance
from recurra.v1 import inference_pb2, session_pb2
from recurra.wire.errors import (
    AlreadyApplied,
    Behind,
    Contended,
    DataLoss,
    Diverged,
    Mismatch,
    RecurraError,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionNotFound,
)
from recurra.wire.tensors import to_array, to_tensor
from tests.simulation import chain
from tests.simulation.oracle import Idle, Shared, Unexplained, Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

_FOLLOWED: Final = (Mismatch, DataLoss, SessionExpired, SessionNotFound, SessionClosed)
_TRIES: Final = 4


class SdkClock:
    """The simulation's time."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Writer:
    """Someone who writes sessions. `level`: of durability; None: the calls'."""

    def __init__(self, world: World, sessions: Sequence[str], level: Any) -> None:
        self.world, self.random, self.level = world, Random(world.random.random()), level
        self.truths = {name: world.truth(name) for name in sessions}
        self.names = list(sessions)
        self.client = self.made()

    def made(self) -> AsyncClient:
        """A client without a past."""
        return AsyncClient(
            channels=self.world.network.channels(),
            chance=Chance(SdkClock(), self.random.randbytes),
            timeout=self.random.choice((2.0, 5.0, 20.0)),
            window_bytes=self.world.plan.window_bytes,
        )

    def xs(self) -> list[int]:
        """A chunk of inputs that no other has."""
        timesteps = 70 if self.random.random() < self.world.plan.long else self.random.choice((1, 1, 1, 2, 3, 4))
        return [self.world.number() for _ in range(timesteps)]

    async def rest(self) -> None:
        tired = self.world.asked > self.world.plan.operations
        await asyncio.sleep(0.5 if tired else self.random.choice(self.world.plan.rests))

    def say(self, *words: object) -> None:
        self.world.say(type(self).__name__, *words)

    def happens(self, share: float) -> bool:
        return self.random.random() < share

    async def work(self) -> None:
        """Until the world is healed."""
        while not self.world.healed:
            await self.turn()

    async def turn(self) -> None:
        raise NotImplementedError

    async def settle(self) -> None:
        """Once nothing is wrong any more: each session is written once more, and the store has all."""
        raise NotImplementedError

    async def asking(self, name: str, xs: Sequence[int], ask: Any, told: Any) -> Exception | None:
        """Ask for a predict, and again while that is a retry. Returns what it failed with."""
        truth = self.truths[name]
        error: Exception | None = None
        for _ in range(_TRIES):
            truth.asks(tuple(xs))
            self.say("asks", name, *_short(xs))
            try:
                outputs = await ask(chain_input(xs))
            except RecurraError as failure:
                error = failure
                self.say("failed", name, *_short(xs), error.reason, error)
                truth.failed(error, xs=xs)
                if not error.retryable or self.happens(0.2):
                    return error
                continue
            except asyncio.CancelledError:
                truth.failed(asyncio.CancelledError(), xs=xs)
                raise
            position, durable = told()
            self.say("answered", name, *_short(xs), "position", position, "durable", durable)
            truth.predicted(xs, [int(y) for y in outputs], position, durable)
            return None
        return error


def _short(xs: Sequence[int]) -> Sequence[object]:
    return xs if len(xs) < 5 else (*xs[:2], f"... {len(xs)}")


def chain_input(xs: Sequence[int]) -> np.ndarray:
    return np.array(xs, "<i8")


class Caller(Writer):
    """One session by calls: every operation that a session has, some of them cut off by their caller."""

    def __init__(self, world: World, sessions: Sequence[str], level: Any) -> None:
        super().__init__(world, sessions, level)
        self.name = self.names[0]
        self.truth = self.truths[self.name]
        self.session = self.opened()

    def opened(self) -> Any:
        return self.client.session(chain.NAME, self.name, ttl=self.world.plan.ttl_seconds)

    def told(self) -> tuple[Any, Any]:
        return self.session.position, self.session.durable_position

    async def turn(self) -> None:
        await self.rest()
        kind = self.random.random()
        if kind < 0.7:
            error = await self.predict()
        elif kind < 0.76:
            error = await self.change("reset", chain.FRESH, self.session.reset)
        elif kind < 0.82:
            state = self.world.number()
            error = await self.change("set", state, lambda: self.session.set_state({"chain/h": np.array(state, "<i8")}))
        elif kind < 0.86:
            error = await self.change("end", chain.FRESH, self.session.end)
        elif kind < 0.9:
            error = await self.what_if()
        elif kind < 0.94:
            error = await self.look()
        else:
            self.say("forgets", self.name)
            self.client = self.made()
            self.session = self.opened()
            self.truth.forgotten()
            return
        if error is not None and not getattr(error, "retryable", False) and isinstance(error, _FOLLOWED):
            await self.follow()

    async def follow(self) -> None:
        with suppress(RecurraError):
            await self.session.follow()
            self.say("follows", self.name)
            self.truth.forgotten()

    async def predict(self) -> Exception | None:
        error: Exception | None = None
        if self.happens(self.world.plan.impatience):
            with suppress(TimeoutError):
                async with asyncio.timeout(self.random.choice((0.001, 0.005, 0.5))):
                    error = await self.asking(self.name, self.xs(), self.session.predict, self.told)
            return error
        return await self.asking(self.name, self.xs(), self.session.predict, self.told)

    async def change(self, what: str, state: int, ask: Any) -> Exception | None:
        asked = what, state
        for _ in range(_TRIES):
            self.truth.asks(asked)
            self.say(what, self.name)
            try:
                await ask()
            except RecurraError as error:
                self.say(what, "failed", self.name, error.reason, error)
                self.truth.failed(error, rebases=state)
                if not error.retryable:
                    return error
                continue
            self.say(what, "answered", self.name)
            self.truth.rebased(state, self.session.position, ends=what == "end")
            return None
        return None

    async def what_if(self) -> Exception | None:
        xs = self.xs()
        self.truth.asks(("what if", *xs))
        try:
            outputs = await self.session.predict(chain_input(xs), commit=False)
        except RecurraError as error:
            return error
        if not any(chain.follow(state, xs) == outputs.tolist() for state, _ in self.truth.places()):
            raise Violation(f"wrong what-if: '{self.name}' answered {outputs}; it stood at {self.truth.at}")
        return None

    async def look(self) -> Exception | None:
        with suppress(RecurraError):
            state = int((await self.session.state())["chain/h"])
            self.truth.seen(state)
        return None

    async def settle(self) -> None:
        await _persist(self, self.name, self.predict, self.follow)


class Streamer(Writer):
    """Sessions on a stream, each by a task of its own; the stream is closed, or cut off, and opened again."""

    def __init__(self, world: World, sessions: Sequence[str], level: Any) -> None:
        super().__init__(world, sessions, level)
        self.stream = self.opened()

    def opened(self) -> Any:
        return self.client.stream(chain.NAME, durability=self.level, linger=0.001)

    async def turn(self) -> None:
        """Some operations of each, all at once; then the stream is closed, or dropped."""
        operations = self.random.choice((2, 5, 12))
        await together([self._some(name, operations) for name in self.names])
        if self.happens(0.5):
            if await self.close():
                self.renew()
        elif self.happens(0.5):
            await self.drop()

    async def _some(self, name: str, operations: int) -> None:
        for _ in range(operations):
            await self.rest()
            await self.predict(name)
            if self.world.healed:
                return

    def told(self) -> tuple[Any, Any]:
        return None, -1 if self.level == "checkpointed" else None

    async def predict(self, name: str) -> Exception | None:
        error = await self.asking(name, self.xs(), lambda x: self.stream.predict(name, x), self.told)
        if error is None and self.level == "replicated":
            self.truths[name].replicated()
        if isinstance(error, _FOLLOWED):
            await self.follow(name)
        return error

    async def follow(self, name: str) -> None:
        await self.stream.follow(name)
        self.say("follows", name)
        self.truths[name].forgotten()

    async def close(self) -> bool:
        try:
            await self.stream.close()
        except RecurraError as error:
            self.say("close failed", error.reason, error)
            if isinstance(error, _FOLLOWED) and not error.retryable:
                if not any(truth.may_be_lost for truth in self.truths.values()):
                    raise Unexplained(f"a close that failed without a reason: {error.reason}: {error}") from None
                for truth in self.truths.values():
                    truth.told_lost()
            return False
        self.say("closed")
        for truth in self.truths.values():
            truth.closed()
        return True

    async def drop(self) -> None:
        self.say("drops the stream")
        await self.stream.__aexit__(RuntimeError, RuntimeError(), None)
        self.renew()

    def renew(self) -> None:
        """A new process, without a past."""
        self.say("begins anew")
        self.client = self.made()
        self.stream = self.opened()
        for truth in self.truths.values():
            truth.forgotten()

    async def settle(self) -> None:
        for name in self.names:

            async def ask(name: str = name) -> Exception | None:
                return await self.predict(name)

            async def follow(name: str = name) -> None:
                await self.follow(name)

            await _persist(self, name, ask, follow)
        for _ in range(20):
            if await self.close():
                return
        raise Idle("the stream cannot be closed")


class Batcher(Writer):
    """A batch of sessions, a row each."""

    def __init__(self, world: World, sessions: Sequence[str], level: Any) -> None:
        super().__init__(world, sessions, level)
        self.batch = self.opened()

    def opened(self) -> Any:
        return self.client.batch(chain.NAME, self.names, durability=self.level)

    async def turn(self) -> None:
        await self.rest()
        kind = self.random.random()
        if kind < 0.8:
            await self.predict()
        elif kind < 0.85:
            await self.reset()
        elif kind < 0.95:
            if await self.close():
                self.renew()
        else:
            self.renew()

    def renew(self) -> None:
        self.client = self.made()
        self.batch = self.opened()
        for truth in self.truths.values():
            truth.forgotten()

    async def predict(self) -> None:
        """Each row's chunk, again where it failed."""
        chunks = {row: self.xs()[:4] for row in range(len(self.names)) if self.happens(0.9)}
        for _ in range(_TRIES):
            if not chunks:
                return
            chunks = await self._attempt(chunks)

    async def _attempt(self, chunks: dict[int, list[int]]) -> dict[int, list[int]]:
        longest = max(map(len, chunks.values()))
        lengths = [len(chunks.get(row, ())) for row in range(len(self.names))]
        x = np.zeros((len(self.names), longest), "<i8")
        for row, xs in chunks.items():
            x[row, : len(xs)] = xs
            self.truths[self.names[row]].asks(tuple(xs))
        self.say("batch asks", *((self.names[row], *xs) for row, xs in chunks.items()))
        errors: dict[str, Exception] = {}
        try:
            outputs = await self.batch.predict(x, lengths=lengths)
        except BatchError as some:
            errors, outputs = some.errors, some.outputs
        except RecurraError as error:
            errors = {self.names[row]: error for row in chunks}
        again = {}
        for row, xs in chunks.items():
            name = self.names[row]
            truth, error = self.truths[name], errors.get(name)
            if error is None:
                place = int(self.batch.position[row]), int(self.batch.durable_position[row])
                self.say("answered", name, *xs, "position, durable", *place)
                truth.predicted(xs, outputs[row, : len(xs)].tolist(), *place)
                if self.level == "replicated":
                    truth.replicated()
                continue
            self.say("failed", name, *xs, getattr(error, "reason", ""), error)
            truth.failed(error, xs=xs)
            if getattr(error, "retryable", False):
                again[row] = xs
        if any(isinstance(error, _FOLLOWED) and not error.retryable for error in errors.values()):
            await self.follow()
            return {}
        return again

    async def reset(self) -> None:
        for name in self.names:
            self.truths[name].asks("reset")
        errors: dict[str, Exception] = {}
        try:
            await self.batch.reset()
        except BatchError as some:
            errors = some.errors
        except RecurraError as error:
            errors = dict.fromkeys(self.names, error)
        self.say("batch reset", errors)
        for row, name in enumerate(self.names):
            if name in errors:
                self.truths[name].failed(errors[name], rebases=chain.FRESH)
            else:
                self.truths[name].rebased(chain.FRESH, int(self.batch.position[row]))

    async def follow(self) -> None:
        try:
            await self.batch.follow()
        except (BatchError, RecurraError):
            self.renew()
        for truth in self.truths.values():
            truth.forgotten()

    async def close(self) -> bool:
        try:
            await self.batch.close()
        except (BatchError, RecurraError) as error:
            self.say("close failed", error)
            each = error.errors if isinstance(error, BatchError) else dict.fromkeys(self.names, error)
            for name, one in each.items():
                if isinstance(one, _FOLLOWED) and not one.retryable:
                    if not self.truths[name].may_be_lost:
                        text = f"a close that failed without a reason: '{name}': {one.reason}: {one}"
                        raise Unexplained(text) from None
                    self.truths[name].told_lost()
            return False
        self.say("batch closed")
        for truth in self.truths.values():
            truth.closed()
        return True

    async def settle(self) -> None:
        before = {name: truth.acknowledged for name, truth in self.truths.items()}
        for _ in range(20):
            await self.predict()
            if all(truth.acknowledged > before[name] for name, truth in self.truths.items()) and await self.close():
                return
        raise Idle("the batch is not acknowledged any more")


class Piper(Writer):
    """One session by a stream with several chunks in flight."""

    def __init__(self, world: World, sessions: Sequence[str], level: Any) -> None:
        super().__init__(world, sessions, level)
        self.name = self.names[0]
        self.truth = self.truths[self.name]
        self.session = self.client.session(chain.NAME, self.name)

    async def turn(self) -> None:
        await self.rest()
        await self.line(self.random.choice((1, 4, 10)))

    async def line(self, length: int) -> Exception | None:
        """Chunks in line; each is answered, or it and all behind it may be applied, up to some one."""
        chunks = [self.xs() for _ in range(length)]
        sent = 0

        async def source() -> AsyncIterator[np.ndarray]:
            nonlocal sent
            for xs in chunks:
                sent += 1
                yield chain_input(xs)

        done = 0
        in_flight = self.random.choice((1, 2, 4))
        self.say("line", self.name, *chunks)
        self.truth.asks(tuple(chunks[0]))
        try:
            async with aclosing(
                self.session.stream(source(), in_flight=in_flight, durability=self.level, timeout=5.0)
            ) as outputs:
                async for output in outputs:
                    self.say("answered", self.name, *_short(chunks[done]), "durable", self.session.durable_position)
                    self.truth.predicted(chunks[done], output.tolist(), None, -1)
                    done += 1
                    if done < length:
                        self.truth.asks(tuple(chunks[done]))
        except RecurraError as error:
            self.say("line failed", self.name, done, sent, error.reason, error)
            if done < length:
                self.truth.failed(error, lines=chunks[done : max(sent, done + 1)])
            if isinstance(error, _FOLLOWED):
                await self.follow()
            return error
        self.truth.closed()
        return None

    async def follow(self) -> None:
        with suppress(RecurraError):
            await self.session.follow()
            self.truth.forgotten()

    async def settle(self) -> None:
        async def ask() -> Exception | None:
            return await self.line(1)

        await _persist(self, self.name, ask, self.follow)


class ByHand(Writer):
    """One session by calls that name their operations themselves; what was answered is asked again, to the letter and
    changed, and what was lost is sent again in order.
    """

    def __init__(self, world: World, sessions: Sequence[str], level: Any) -> None:
        super().__init__(world, sessions, level)
        self.name = self.names[0]
        self.truth = self.truths[self.name]
        self.done: list[tuple[bytes, bytes, list[int], list[int], int]] = []  # id, after, xs, outputs, position

    async def call(self, id_: bytes, after: bytes, xs: Sequence[int], *, create: bool = False) -> Any:
        request = inference_pb2.PredictRequest(
            model=chain.NAME,
            session=self.name,
            operation=session_pb2.Operation(
                id=id_, after=after, create=session_pb2.CREATE_IF_MISSING if create else session_pb2.CREATE_NEVER
            ),
            inputs=[to_tensor(chain_input(xs))],
            options=inference_pb2.PredictOptions(
                durability=inference_pb2.DURABILITY_REPLICATED
                if self.level == "replicated"
                else inference_pb2.DURABILITY_COMMITTED
            ),
        )
        channel = self.random.choice(self.world.network.channels())
        self.say("calls", self.name, id_.hex()[:6], "after", after.hex()[:6], *_short(xs))
        try:
            response = await channel.call(PREDICT, request, timeout=self.random.choice((0.5, 2.0, 5.0)))
        except RecurraError as error:
            self.say("refused", self.name, id_.hex()[:6], error.reason, error)
            raise
        self.say("answered", self.name, id_.hex()[:6], response.session.position, response.duplicate)
        return response

    async def turn(self) -> None:
        await self.rest()
        kind = self.random.random()
        if kind < 0.65 or not self.done:
            await self.predict()
        elif kind < 0.8:
            await self.again(self.done[-1])
        elif kind < 0.9:
            await self.again(self.random.choice(self.done))
        else:
            await self.changed(self.done[-1])

    async def predict(self) -> Exception | None:
        after = self.done[-1][0] if self.done else b""
        return await self._until(self.random.randbytes(16), after, self.xs())

    async def _until(self, id_: bytes, after: bytes, xs: list[int]) -> Exception | None:
        """Ask until it is answered for good; replay what the store has lost."""
        opening = not self.done
        for _ in range(60):
            self.truth.asks(tuple(xs))
            try:
                response = await self.call(id_, after, xs, create=opening)
            except Behind as error:
                self.truth.failed(Contended(str(error)) if self._mine(error.last_id) else error, xs=xs)
                if not await self._replay(error.last_id):
                    return self._lost(error)
            except (SessionNotFound, SessionExpired, DataLoss, Diverged, SessionExists) as error:
                self.truth.failed(error, xs=xs)
                return self._lost(error)
            except RecurraError as error:
                self.truth.failed(error, xs=xs)
                if isinstance(error, AlreadyApplied):  # its reply is not kept
                    return self._lost(error)
                await asyncio.sleep(0.1)
            else:
                self._took(id_, after, xs, response)
                return None
        return None

    def _took(self, id_: bytes, after: bytes, xs: list[int], response: Any) -> None:
        outputs = to_array(response.outputs[0]).tolist()
        session = response.session
        self.truth.predicted(xs, outputs, session.position, None)
        if self.level == "replicated":
            self.truth.replicated()
        if session.last_id != id_:
            raise Violation(f"the reply to {id_.hex()} of '{self.name}' stands at {session.last_id.hex()}")
        if session.created and self.truth.acknowledged > 1 and not self.truth.doubtful:
            raise Violation(f"'{self.name}' was created again")
        self.done.append((id_, after, xs, outputs, session.position))

    def _mine(self, id_: bytes) -> bool:
        return any(one[0] == id_ for one in self.done)

    async def _replay(self, stands_at: bytes) -> bool:
        """Send again what came after this one. Whether that can be done."""
        place = next((place for place, one in enumerate(self.done) if one[0] == stands_at), None)
        if place is None or not self.world.stored.lost():
            return False
        for id_, after, xs, outputs, _ in self.done[place + 1 :]:
            for _ in range(20):
                try:
                    response = await self.call(id_, after, xs)
                except RecurraError as error:
                    if isinstance(error, AlreadyApplied):
                        break
                    if not error.retryable:
                        return True  # lost again: asking again tells
                    await asyncio.sleep(0.1)
                else:
                    if to_array(response.outputs[0]).tolist() != outputs:
                        raise Violation(f"replayed otherwise: '{self.name}' {id_.hex()}")
                    break
        return True

    def _lost(self, error: Exception) -> Exception:
        """What is there is not known: it is asked for, and continued by name."""
        self.truth.forgotten()
        self.done.clear()
        return error

    async def again(self, one: tuple[bytes, bytes, list[int], list[int], int]) -> None:
        """A retry of what was answered: the same again, or that it was applied; never a second step."""
        id_, after, xs, outputs, position = one
        if not after and self.world.plan.loses:
            return  # it names nothing: a store that lost it takes it anew, wherever it stands
        try:
            response = await self.call(id_, after, xs)
        except RecurraError:
            return
        if to_array(response.outputs[0]).tolist() != outputs or response.session.position != position:
            raise Violation(f"another reply to a retry: '{self.name}' {id_.hex()}: {response}")
        if response.session.last_id != id_:
            raise Violation(f"the retried reply to {id_.hex()} stands at {response.session.last_id.hex()}")
        if not response.duplicate and not self.world.stored.lost():
            raise Violation(f"'{self.name}' took {id_.hex()} twice")

    async def changed(self, one: tuple[bytes, bytes, list[int], list[int], int]) -> None:
        """The id of what was answered, with another input: refused."""
        id_, after, xs, _, _ = one
        if self.world.plan.loses:
            return  # a store that lost the one would take the other
        with suppress(RecurraError):
            response = await self.call(id_, after, [x + 1 for x in xs])
            raise Violation(f"'{self.name}' took another input under the id {id_.hex()}: {response}")

    async def settle(self) -> None:
        async def follow() -> None:
            return

        await _persist(self, self.name, self.predict, follow)


class Rivals(Writer):
    """One session that several write, each by a handle of his own."""

    def __init__(self, world: World, sessions: Sequence[str], level: Any) -> None:
        super().__init__(world, (), level)
        self.shared = Shared(sessions[0], world.stored, mortal=world.plan.mortal)
        self.handles = [self._handle() for _ in range(2)]

    def _handle(self) -> Any:
        client = self.made()
        if self.level is None:
            return client.session(chain.NAME, self.shared.name)
        return client.batch(chain.NAME, [self.shared.name], durability=self.level)

    async def work(self) -> None:
        await together([self._write(place) for place in range(len(self.handles))])

    async def _write(self, place: int) -> None:
        while not self.world.healed:
            await self.rest()
            await self.predict(place)

    async def predict(self, place: int) -> bool:
        handle, xs = self.handles[place], [self.world.number()]
        for _ in range(_TRIES):
            rests_on = self.shared.asks(xs)
            self.say("asks", place, self.shared.name, *xs)
            try:
                x = chain_input(xs)
                outputs = await handle.predict(x if self.level is None else x[None])
            except (RecurraError, BatchError) as failure:
                [error] = failure.errors.values() if isinstance(failure, BatchError) else [failure]
                self.say("failed", place, self.shared.name, *xs, error.reason, error)
                if isinstance(error, _FOLLOWED) and not error.retryable:
                    with suppress(RecurraError, BatchError):
                        await handle.follow()
                        self.say("follows", place, self.shared.name)
                if not error.retryable:
                    return False
                continue
            found = outputs.reshape(-1).tolist()
            self.say("answered", place, self.shared.name, *xs, chain.told(found[-1]))
            self.shared.predicted(xs, found, rests_on if self.level != "checkpointed" else chain.FRESH)
            return True
        return False

    async def settle(self) -> None:
        for place in range(len(self.handles)):
            for _ in range(20):
                if await self.predict(place):
                    break
            else:
                raise Idle(f"'{self.shared.name}' is not acknowledged any more")


async def together(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All at once; the first that fails tells."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _persist(writer: Writer, name: str, ask: Any, follow: Any) -> None:
    """Ask until an operation is acknowledged."""
    truth = writer.truths[name]
    before, error = truth.acknowledged, None
    for _ in range(20):
        error = await ask()
        if truth.acknowledged > before:
            return
        if error is not None and not getattr(error, "retryable", False):
            await follow()
        await asyncio.sleep(0.5)
    raise Idle(f"'{name}' is not acknowledged any more: {error}")


KINDS: Final = {kind.__name__: kind for kind in (Caller, Streamer, Batcher, Piper, ByHand, Rivals)}
