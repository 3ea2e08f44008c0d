"""A stream of any number of sessions, which makes frames of their chunks by itself."""

# ruff: noqa: ASYNC109 - timeouts are part of every call's surface

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from recurra.client.arrays import Inputs
from recurra.client.chunk import Outputs
from recurra.client.delivery import Context
from recurra.client.dispatch import Dispatch
from recurra.client.mapping import Mapping, Pairs
from recurra.client.model import Model
from recurra.client.packing import Answer, Asked, Layer
from recurra.client.standing import CreateOption, Durability
from recurra.v1 import inference_pb2
from recurra.wire.errors import DeadlineExceeded, InvalidArgument, RecurraError

if TYPE_CHECKING:
    from recurra.client.aio import AsyncClient

_GRACE_SECONDS: Final = 0.05  # what a frame met tells more than that time ran out
_OUT_OF_TIME: Final = "time ran out; safe to call again with the same input"
_NOTHING: Final[dict[str, Exception]] = {}


class AsyncStream:
    """Predictions of any number of sessions of one model, sent together where they come together.

    Two ways to use it, and both at once: `predict` for callers that each have a session, as the handlers of a web
    server, and `map` for one source of many sessions' inputs, as a log or a queue. There is no more to it: frames,
    handles and what is in flight are its own affair; reset, states and ends are a session's own (`client.session`).

    The rules of AsyncSession hold for each session: its operations apply in order, each once, the next when the last
    is answered; after an error that is `retryable` or a cancellation, asking again with the same input is a retry. What
    somebody else does to the session meanwhile, as a reset, is told by its next operation (StateReset, Diverged, ...);
    `follow` goes on from there. Errors of one session do not touch the others.

    Attributes:
        model: the model's name.

    """

    def __init__(
        self,
        client: AsyncClient,
        context: Context,
        model: str,
        *,
        create: CreateOption,
        durability: Durability | None,
        return_sequences: bool,
        linger: float,
    ) -> None:
        if linger < 0:
            raise InvalidArgument("linger is at least 0 seconds")
        self.model = model
        self._client, self._context = client, context
        self._create, self._durability, self._linger = create, durability, linger
        self._options = inference_pb2.PredictOptions(return_sequences=return_sequences)
        self._asking: asyncio.Task[Model] | None = None
        self._opened: tuple[Dispatch, Layer] | None = None
        self._maps: set[Mapping] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        elif self._opened is not None:
            await self._opened[0].close()

    async def predict(self, session_id: str, x: Inputs, *, timeout: float | None = None) -> Outputs:
        """The model's outputs for a chunk, from the session's state, which moves on.

        Args:
            session_id: any text, of the caller's choice.
            x: one timestep (*shape) or a chunk (T, *shape); a dict of such by input name, for several inputs.
            timeout: seconds for all attempts.

        Returns:
            One array, or a dict by output name where there are several: (T, ...), or (...) for one timestep.

        """
        loop, seconds = asyncio.get_running_loop(), self._context.timeout if timeout is None else timeout
        until = loop.time() + seconds
        dispatch, layer = self._opened or await self._open(timeout)
        chunk = layer.lay(x)
        while dispatch.full:
            try:
                async with asyncio.timeout_at(until):
                    await dispatch.stir()
            except TimeoutError:
                raise DeadlineExceeded(_OUT_OF_TIME) from None
        future: asyncio.Future[Outputs] = loop.create_future()
        asked = Asked(session_id, chunk, seconds, partial(_fulfil, future), _NOTHING)
        timer = loop.call_at(until + _GRACE_SECONDS, _fulfil, future, asked, None)
        dispatch.put(asked)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                dispatch.give_back(asked, future.result())  # both came at once
            raise
        finally:
            timer.cancel()
            asked.answer = None

    async def map(
        self, pairs: Pairs, *, timeout: float | None = None
    ) -> AsyncGenerator[tuple[str, Outputs | RecurraError], None]:
        """Each session id with what came of its chunk, as soon as it is there: in order per session, not among them.

        Where an operation failed, its error comes in the place of outputs, and the session's later chunks are not sent
        but get the same error, until `follow`; the others go on. Pairs are taken as long as there is room for them,
        some thousands ahead; those taken when the caller stops early may be applied.

        Args:
            pairs: an iterable or async iterable of session ids, each with what `predict` takes.
            timeout: seconds for each chunk, from when it is sent.

        """
        outputs = self.batches(pairs, timeout=timeout)
        try:
            async for some in outputs:
                for one in some:
                    yield one
        finally:
            await outputs.aclose()

    async def batches(
        self, pairs: Pairs, *, timeout: float | None = None
    ) -> AsyncGenerator[list[tuple[str, Outputs | RecurraError]], None]:
        """As `map`: what came together, together. It is what the blocking client's `map` is made of."""
        dispatch, layer = await self._open(timeout)
        mapping = Mapping(dispatch, layer, self._context.timeout if timeout is None else timeout)
        self._maps.add(mapping)
        feeding = asyncio.create_task(mapping.feed(pairs))
        feeding.add_done_callback(lambda _: mapping.woken.set())
        try:
            while mapping.taken or not feeding.done():
                await mapping.woken.wait()
                if outputs := mapping.collect():
                    yield outputs
            feeding.result()
        finally:
            self._maps.discard(mapping)
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            mapping.leave()

    async def follow(self, session_id: str) -> None:
        """Continue the session from where it stands, whoever brought it there; where it is not, it is opened again."""
        if self._opened is not None:
            await self._opened[0].follow(session_id)
        for mapping in self._maps:
            mapping.failed.pop(session_id, None)

    async def close(self) -> None:
        """Wait until all is answered and the store has it, and give the stream up; the sessions and the handle stay.

        Raises RecurraError where it is not sure that the store has all.
        """
        if self._opened is not None:
            try:
                await self._opened[0].drain()
            finally:
                await self._opened[0].close()

    async def _open(self, timeout: float | None) -> tuple[Dispatch, Layer]:
        """What the model needs to be known for; asked once, however many callers come first."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._client.known(self.model, timeout))
        try:
            model = await asyncio.shield(self._asking)
        except RecurraError:
            self._asking = None
            raise
        if self._opened is None:
            dispatch = Dispatch(
                self._context,
                model,
                create=self._create,
                durability=self._durability,
                options=self._options,
                linger=self._linger,
            )
            self._opened = dispatch, Layer(model)
        return self._opened


def _fulfil(future: asyncio.Future[Outputs], _: Asked, answer: Answer | None) -> bool:
    """Tell the one who waits; None: time ran out."""
    if future.done():
        return False
    if answer is None:
        future.set_exception(DeadlineExceeded(_OUT_OF_TIME))
    elif isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
    return True
