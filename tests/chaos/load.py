"""Hundreds of sessions that step through the SDK, in every way that it has, and what each was answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from recurra.client import AsyncBatch, AsyncClient, BatchError, RecurraError, StoreFull
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
CLIENTS = 4
_PERIOD = 997  # a session's inputs begin again after so many
_KINDS = ("calls", "stream", "stream", "checkpointed stream", "frames", "checkpointed frames")
_PAUSE = 0.05  # seconds before what was refused is asked again

T = TypeVar("T")


@dataclass(eq=False)
class Stepped:
    """One session, every operation of which is one timestep.

    Attributes:
        ys: what it was answered.
    """

    name: str
    kind: str
    xs: NDArray[np.float32]
    ys: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def next(self) -> NDArray[np.float32]:
        return self.xs[len(self.ys) % _PERIOD]

    @property
    def committed(self) -> bool:
        return not self.kind.startswith("checkpointed")

    def wrong(self) -> int:
        """How many answers are not the oracle's."""
        if not self.ys:
            return 0
        want = LSTM.whole(np.resize(self.xs, (len(self.ys), 3)))
        return int((~np.isclose(np.stack(self.ys), want, **CLOSE).all(1)).sum())


class Load:
    """Sessions that step as fast as they are answered.

    Attributes:
        told: errors that the SDK raised, by reason; each operation was asked again.
    """

    def __init__(self, addresses: Sequence[str], sessions: int, seed: int) -> None:
        self._addresses = addresses
        kinds = [_KINDS[row % len(_KINDS)] for row in range(sessions)]
        self.sessions = [
            Stepped(f"{kind} {row}", kind, LSTM.draw(seed * sessions + row, _PERIOD)) for row, kind in enumerate(kinds)
        ]
        self.told: Counter[str] = Counter()
        self._stopping = False
        self._waiting: set[Stepped] = set()
        self._none_waits = asyncio.Event()

    @property
    def operations(self) -> int:
        return sum(len(session.ys) for session in self.sessions)

    async def all_step(self, seconds: float) -> None:
        """Wait until each session was answered once more."""
        self._waiting, self._none_waits = set(self.sessions), asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await self._none_waits.wait()
        except TimeoutError:
            stuck = sorted(session.name for session in self._waiting)
            raise AssertionError(f"{len(stuck)} sessions are not answered: {', '.join(stuck[:9])}") from None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """They step inside the block; at its end all of it is in the store."""
        async with AsyncExitStack() as stack:
            clients = []
            for at in range(CLIENTS):
                turned = [*self._addresses[at % len(self._addresses) :], *self._addresses[: at % len(self._addresses)]]
                clients.append(await stack.enter_async_context(AsyncClient(turned, timeout=10)))
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            for at, client in enumerate(clients):
                tasks.create_task(self._client(client, self.sessions[at::CLIENTS]))
            try:
                yield
            finally:
                self._stopping = True

    async def _client(self, client: AsyncClient, sessions: list[Stepped]) -> None:
        of = {kind: [each for each in sessions if each.kind == kind] for kind in _KINDS}
        async with (
            client.stream("lstm") as committed,
            client.stream("lstm", durability="checkpointed") as checkpointed,
            asyncio.TaskGroup() as tasks,
        ):
            for each in of["calls"]:
                tasks.create_task(self._step(each, client.session("lstm", each.name).predict))
            for stream, kind in ((committed, "stream"), (checkpointed, "checkpointed stream")):
                for each in of[kind]:
                    tasks.create_task(self._step(each, lambda x, s=stream, n=each.name: s.predict(n, x)))
            for durability, kind in (("committed", "frames"), ("checkpointed", "checkpointed frames")):
                rows = of[kind]
                if rows:
                    batch = client.batch("lstm", [each.name for each in rows], durability=durability)
                    tasks.create_task(self._batch(rows, batch))

    async def _step(self, session: Stepped, predict: Callable[[NDArray[np.float32]], Awaitable[object]]) -> None:
        while not self._stopping:
            y = await self._insist(lambda: predict(session.next))
            self._answered(session, y)

    async def _batch(self, rows: list[Stepped], batch: AsyncBatch) -> None:
        """A row that failed is asked for again, alone, before the next step of all."""
        while not self._stopping:
            x, left = np.stack([each.next for each in rows])[:, None], np.ones(len(rows), np.int64)
            while left.any():
                failed: dict[str, RecurraError] = {}
                try:
                    ys = await self._insist(lambda x=x, left=left: batch.predict(x, lengths=left))
                except BatchError as error:
                    ys, failed = error.outputs, error.errors
                    for each in failed.values():
                        self._tell(each)
                    await asyncio.sleep(_PAUSE)
                for at in np.flatnonzero(left):
                    if rows[at].name not in failed:
                        self._answered(rows[at], ys[at, 0])
                        left[at] = 0
        await self._insist(batch.close)

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the same until it is answered. Raises what does not pass by itself."""
        while True:
            try:
                return await ask()
            except RecurraError as error:
                self._tell(error)
                await asyncio.sleep(_PAUSE)

    def _tell(self, error: RecurraError) -> None:
        if not (error.retryable or isinstance(error, StoreFull)):
            raise error
        self.told[error.reason] += 1

    def _answered(self, session: Stepped, y: object) -> None:
        session.ys.append(np.asarray(y, np.float32))
        self._waiting.discard(session)
        if not self._waiting:
            self._none_waits.set()
