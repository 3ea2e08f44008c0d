"""A handle on one session."""

# ruff: noqa: ASYNC109 - timeouts are part of every call's surface

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from numpy.typing import ArrayLike

from recurra.client.arrays import Array, Inputs, check_names, lay_out, start_tensors, state_tensors
from recurra.client.channel import GET_SESSION, GET_STATE
from recurra.client.chunk import Prediction, both, tensors, to_mask, to_outputs, to_states
from recurra.client.delivery import Context, Delivery
from recurra.client.frame_stream import FrameStream
from recurra.client.history import History
from recurra.client.model import SessionInfo, read_session
from recurra.client.operation import Reply
from recurra.client.pipeline import Pipeline
from recurra.client.standing import CreateOption, Durability
from recurra.v1 import inference_pb2, session_pb2
from recurra.wire.errors import InvalidArgument, SessionClosed, SessionExpired, SessionNotFound

if TYPE_CHECKING:
    from recurra.client.aio import AsyncClient


class AsyncSession:
    """One session of a model, by its id. Making the handle calls nobody; its first operation opens the session.

    Operations of one handle follow each other; those of many handles run side by side. Every operation applies once,
    whatever is retried. Raises the classes of recurra.wire.errors; after one that is `retryable`, calling again with
    the same input is a retry of the same operation. After one that tells that others wrote, ended or lost the session
    (Diverged, StateReset, WrongIncarnation, SessionClosed, SessionExpired, DataLoss), `follow` goes on from what is
    there.

    Attributes:
        model: the model's name.
        id: the session's.

    """

    def __init__(
        self,
        client: AsyncClient,
        context: Context,
        model: str,
        session_id: str,
        *,
        create: CreateOption,
        ttl: float | None,
    ) -> None:
        self.model, self.id = model, session_id
        self._client, self._context, self._ttl = client, context, ttl
        self._history = History(context.window, create=create, entropy=context.chance.entropy)
        self._frames = FrameStream(context.replicas, model, [session_id])
        self._delivery = Delivery(context, self._history, model, session_id, frames=self._frames)
        self._turn = asyncio.Lock()
        self._streaming = False

    @property
    def position(self) -> int | None:
        """Timesteps since the base state (fresh, reset or set), by the last reply; None before any."""
        return self._history.standing.position if self._history.standing else None

    @property
    def durable_position(self) -> int | None:
        """Timesteps since the base state that the store holds, by the last reply; None before any."""
        return self._history.standing.durable_position if self._history.standing else None

    @property
    def incarnation(self) -> bytes | None:
        """16 bytes, the id of this life of the session, by the last reply; None before any."""
        return self._history.standing.incarnation if self._history.standing else None

    @property
    def created(self) -> bool | None:
        """Whether the last operation created the session; None before any reply."""
        return self._history.standing.created if self._history.standing else None

    @property
    def expire_time(self) -> datetime | None:
        """When the session expires without another operation, by the last reply; None before any."""
        return self._history.standing.expire_time if self._history.standing else None

    async def predict(
        self,
        x: Inputs,
        *,
        return_states: bool = False,
        return_sequences: bool = True,
        initial_state: Mapping[str, ArrayLike] | None = None,
        start: Inputs | None = None,
        mask: ArrayLike | None = None,
        commit: bool = True,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> Prediction:
        """The model's outputs for a chunk, from the session's state, which moves on.

        Args:
            x: one timestep (*shape) or a chunk (T, *shape); a dict of such by input name, for several inputs.
            return_states: also return the states after the last timestep, by name.
            return_sequences: all timesteps of an output; False: the last only.
            initial_state: states to start from instead of the session's, by name.
            start: what the model's start graph makes the states of that this starts from: the source of a translation,
                an image's features. An array, or a dict by name.
            mask: (T,); timesteps with False change nothing and repeat the output before them.
            commit: False: what if; the session stays as it is.
            ttl: seconds that the session lives without another operation.
            timeout: seconds for all attempts.

        Returns:
            One array, or a dict by output name where there are several: (T, ...), or (...) for one timestep.

        """
        model = await self._client.known(self.model, timeout)
        chunk = lay_out(model, x)
        options = inference_pb2.PredictOptions(
            return_states=return_states, return_sequences=return_sequences, commit=commit
        )
        request = inference_pb2.PredictRequest(
            model=self.model,
            session=self.id,
            operation=self._operation(ttl),
            inputs=tensors(chunk),
            options=options,
            initial_state=state_tensors(model, initial_state or {}),
            start_inputs=start_tensors(model, start),
            mask=to_mask(mask, chunk),
        )
        reply = await self._apply(request, timeout, dry=not commit)
        response = reply.body
        assert isinstance(response, inference_pb2.PredictResponse)
        outputs = to_outputs(model, response.outputs, single=chunk.single, sequences=return_sequences)
        return both(outputs, to_states(response.states) if return_states else None)

    async def reset(
        self,
        *names: str,
        values: Mapping[str, ArrayLike] | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> None:
        """Put the session back to the fresh state, wholly or only the named states or layers; the position becomes 0.

        Args:
            names: of states ("lstm_1/h") or layers ("lstm_1").
            values: what to reset to, by state name, instead of the fresh values.
            ttl: as for predict.
            timeout: seconds for all attempts.

        """
        model = await self._client.known(self.model, timeout)
        check_names(model, names)
        request = session_pb2.ResetStateRequest(
            model=self.model,
            sessions=[self.id],
            operations=[self._operation(ttl)],
            states=names,
            values=state_tensors(model, values or {}),
        )
        await self._apply(request, timeout)

    async def set_state(
        self, values: Mapping[str, ArrayLike], *, ttl: float | None = None, timeout: float | None = None
    ) -> None:
        """Set named states, each of its state's shape; the others stay. The position becomes 0."""
        if not values:
            raise InvalidArgument("give at least one state by name")
        model = await self._client.known(self.model, timeout)
        request = session_pb2.SetStateRequest(
            model=self.model, session=self.id, operation=self._operation(ttl), states=state_tensors(model, values)
        )
        await self._apply(request, timeout)

    async def state(self, *, timeout: float | None = None) -> dict[str, Array]:
        """The states by name, as the store holds them; reads only."""
        request = session_pb2.GetStateRequest(model=self.model, session=self.id)
        return to_states((await self._context.read(GET_STATE, request, timeout)).states)

    async def info(self, *, timeout: float | None = None) -> SessionInfo:
        """Where the session stands; reads only. Raises SessionNotFound, SessionExpired, SessionClosed."""
        request = session_pb2.GetSessionRequest(model=self.model, session=self.id)
        return read_session((await self._context.read(GET_SESSION, request, timeout)).session)

    async def end(self, *, timeout: float | None = None) -> None:
        """End the session and forget its state. Another operation of this handle starts a new life of it."""
        request = session_pb2.EndSessionRequest(model=self.model, session=self.id)
        await self._apply(request, timeout, ends=True)
        self._frames.cancel()

    async def follow(self, *, timeout: float | None = None) -> None:
        """Continue from where the session stands, whoever brought it there.

        Where it is not there, the next operation opens it.
        """
        async with self._alone():
            try:
                self._history.follow(await self.info(timeout=timeout))
            except (SessionNotFound, SessionExpired, SessionClosed):
                self._history.follow(None)

    async def stream(
        self,
        chunks: AsyncIterable[Inputs] | Iterable[Inputs],
        *,
        in_flight: int = 1,
        durability: Durability | None = None,
        return_states: bool = False,
        return_sequences: bool = True,
        timeout: float | None = None,
    ) -> AsyncGenerator[Prediction, None]:
        """The outputs of each chunk, in order, as `predict` gives them.

        Args:
            chunks: an iterable or async iterable of what `predict` takes.
            in_flight: how many chunks may be sent before the first of them is answered. More than 1 hides the way to
                the server. A reply that is then lost, with a later chunk applied already, is AlreadyApplied; and chunks
                taken when the caller stops early may be applied.
            durability: as for AsyncClient.stream; at the end of the chunks, the store has all.
            return_states: as for predict.
            return_sequences: as for predict.
            timeout: seconds for each chunk.

        """
        if in_flight < 1:
            raise InvalidArgument("in_flight is at least 1")
        source = chunks if isinstance(chunks, AsyncIterable) else _each(chunks)
        if in_flight == 1 and durability is None:
            async for x in source:
                yield await self.predict(
                    x, return_states=return_states, return_sequences=return_sequences, timeout=timeout
                )
            return
        model = await self._client.known(self.model, timeout)
        options = inference_pb2.PredictOptions(return_states=return_states, return_sequences=return_sequences)
        async with self._alone():
            self._streaming = True
            self._delivery.durability = durability
            line = Pipeline(self._context, self._delivery, self._frames, model, options=options)
            outputs = line.run(source, in_flight=in_flight, timeout=timeout)
            try:
                async for output in outputs:
                    yield output
            finally:
                self._streaming, self._delivery.durability = False, None
                await outputs.aclose()
                self._frames.cancel()

    def _alone(self) -> asyncio.Lock:
        """The handle's turn. Raises InvalidArgument within a stream that holds it, where waiting might be for ever."""
        if self._streaming:
            raise InvalidArgument("a stream with more than one chunk in flight is open: end it, or use another handle")
        return self._turn

    def _operation(self, ttl: float | None) -> session_pb2.Operation:
        seconds = self._ttl if ttl is None else ttl
        if seconds is not None and seconds <= 0:
            raise InvalidArgument("ttl is more than 0 seconds")
        return session_pb2.Operation(ttl=None if seconds is None else _duration(seconds))

    async def _apply(self, request: Request, timeout: float | None, *, ends: bool = False, dry: bool = False) -> Reply:
        patience = self._context.patience(timeout)
        async with self._alone():
            operation = self._history.name(request, request.ByteSize(), ends=ends, dry=dry)
            return await self._delivery.perform(operation, patience)


Request = (
    inference_pb2.PredictRequest
    | session_pb2.ResetStateRequest
    | session_pb2.SetStateRequest
    | session_pb2.EndSessionRequest
)


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message


async def _each(chunks: Iterable[Inputs]) -> AsyncGenerator[Inputs, None]:
    for x in chunks:
        yield x
