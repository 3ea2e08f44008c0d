"""The blocking client: the asyncio one's methods, each waiting for its result."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Self

from recurra.client.aio import DEFAULT_TARGET, AsyncClient
from recurra.client.arrays import Array
from recurra.client.batch import AsyncBatch
from recurra.client.bridge import Bridged, LoopThread, blocking, iterating, streaming
from recurra.client.channel import Channel
from recurra.client.ferry import ferrying
from recurra.client.grpc_channel import Credentials
from recurra.client.patience import Chance
from recurra.client.session import AsyncSession
from recurra.client.standing import CreateOption, Durability
from recurra.client.stream import AsyncStream


class Session(Bridged[AsyncSession]):
    """One session of a model, by its id: AsyncSession, with methods that wait."""

    predict = blocking(AsyncSession.predict)
    reset = blocking(AsyncSession.reset)
    set_state = blocking(AsyncSession.set_state)
    state = blocking(AsyncSession.state)
    info = blocking(AsyncSession.info)
    end = blocking(AsyncSession.end)
    follow = blocking(AsyncSession.follow)
    stream = streaming(AsyncSession.stream)

    @property
    def model(self) -> str:
        """The model's name."""
        return self._inner.model

    @property
    def id(self) -> str:
        """The session's id."""
        return self._inner.id

    @property
    def position(self) -> int | None:
        """Timesteps since the base state (fresh, reset or set), by the last reply; None before any."""
        return self._inner.position

    @property
    def durable_position(self) -> int | None:
        """Timesteps since the base state that the store holds, by the last reply; None before any."""
        return self._inner.durable_position

    @property
    def incarnation(self) -> bytes | None:
        """16 bytes, the id of this life of the session, by the last reply; None before any."""
        return self._inner.incarnation

    @property
    def created(self) -> bool | None:
        """Whether the last operation created the session; None before any reply."""
        return self._inner.created

    @property
    def expire_time(self) -> datetime | None:
        """When the session expires without another operation, by the last reply; None before any."""
        return self._inner.expire_time


class Batch(Bridged[AsyncBatch]):
    """k sessions that move together: AsyncBatch, with methods that wait."""

    predict = blocking(AsyncBatch.predict)
    reset = blocking(AsyncBatch.reset)
    state = blocking(AsyncBatch.state)
    end = blocking(AsyncBatch.end)
    follow = blocking(AsyncBatch.follow)
    close = blocking(AsyncBatch.close)

    @property
    def model(self) -> str:
        """The model's name."""
        return self._inner.model

    @property
    def ids(self) -> tuple[str, ...]:
        """The sessions' ids, in the rows' order."""
        return self._inner.ids

    @property
    def position(self) -> Array:
        """(k,) uint64, timesteps since each row's base state, by the last replies."""
        return self._inner.position

    @property
    def durable_position(self) -> Array:
        """(k,) uint64, timesteps since each row's base state that the store holds, by the last replies."""
        return self._inner.durable_position

    @property
    def incarnation(self) -> Array:
        """(k, 16) uint8, the id of each session's life, by the last replies."""
        return self._inner.incarnation

    @property
    def created(self) -> Array:
        """(k,) bool, whether the last operation created the session."""
        return self._inner.created


class Stream(Bridged[AsyncStream]):
    """Predictions of any number of sessions, sent together: AsyncStream, used from any number of threads."""

    predict = blocking(AsyncStream.predict)
    map = ferrying(AsyncStream.map, AsyncStream.batches)
    follow = blocking(AsyncStream.follow)
    close = blocking(AsyncStream.close)

    @property
    def model(self) -> str:
        """The model's name."""
        return self._inner.model

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._inner.__aexit__(kind, error, trace))


class Client(Bridged[AsyncClient]):
    """A client of one server, or of several that share a store. Used from any thread; as a context manager it closes.

    Raises the classes of recurra.wire.errors, which recurra.client exports.
    """

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        timeout: float = 30.0,
        window_bytes: int = 64 << 20,
        credentials: Credentials | None = None,
        channels: Sequence[Channel] | None = None,
        chance: Chance | None = None,
    ) -> None:
        """Connects at the first call; the arguments are AsyncClient's."""
        inner = AsyncClient(
            target,
            timeout=timeout,
            window_bytes=window_bytes,
            credentials=credentials,
            channels=channels,
            chance=chance,
        )
        super().__init__(LoopThread.shared(), inner)

    predict = blocking(AsyncClient.predict)
    models = blocking(AsyncClient.models)
    model = blocking(AsyncClient.model)
    sessions = iterating(AsyncClient.sessions)

    def session(
        self, model: str, session_id: str, *, create: CreateOption = "if_missing", ttl: float | None = None
    ) -> Session:
        """A handle on a session, made without a call; the arguments are AsyncClient's."""
        return Session(self._loop, self._inner.session(model, session_id, create=create, ttl=ttl))

    def batch(
        self,
        model: str,
        ids: Sequence[str],
        *,
        create: CreateOption = "if_missing",
        durability: Durability | None = None,
    ) -> Batch:
        """A handle on k sessions that move together, a row each; made without a call. Arguments as AsyncClient's."""
        return Batch(self._loop, self._inner.batch(model, ids, create=create, durability=durability))

    def stream(
        self,
        model: str,
        *,
        create: CreateOption = "if_missing",
        durability: Durability | None = None,
        return_sequences: bool = True,
        linger: float = 0.001,
    ) -> Stream:
        """Predictions of any number of sessions, sent together; made without a call. Arguments as AsyncClient's."""
        inner = self._inner.stream(
            model, create=create, durability=durability, return_sequences=return_sequences, linger=linger
        )
        return Stream(self._loop, inner)

    def close(self) -> None:
        """Close the connections. Sessions live on, by their time to live. Closing again does nothing."""
        self._loop.run(self._inner.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
