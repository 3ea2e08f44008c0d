"""A handle on k sessions that move together: a Keras batch of k rows."""

# ruff: noqa: ASYNC109 - timeouts are part of every call's surface

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from recurra.client import together
from recurra.client.arrays import Array, Inputs, check_names, state_tensors
from recurra.client.channel import GET_STATE
from recurra.client.chunk import Prediction, both, to_states
from recurra.client.columns import Gathering, to_columns
from recurra.client.crew import Crew, same_error
from recurra.client.delivery import Context
from recurra.client.exposure import HALF
from recurra.client.frame_stream import MAX_HANDLES
from recurra.client.frames import columns
from recurra.client.rows import CALLS_AT_ONCE, BatchError
from recurra.client.standing import CreateOption, Durability
from recurra.v1 import inference_pb2, session_pb2
from recurra.wire.errors import InvalidArgument, RecurraError

if TYPE_CHECKING:
    from recurra.client.aio import AsyncClient


class AsyncBatch:
    """Sessions of one model, a row each; the rules of AsyncSession hold for every row, and rows fail alone.

    A predict travels as one frame. What fails as a whole raises its RecurraError. Where only some rows fail, BatchError
    tells which, and has the outputs of the others, which moved on: retry the failed ones alone, by `lengths` of 0 for
    the others.

    Attributes:
        model: the model's name.
        ids: the sessions', in the rows' order.

    """

    def __init__(
        self,
        client: AsyncClient,
        context: Context,
        model: str,
        ids: Sequence[str],
        *,
        create: CreateOption,
        durability: Durability | None,
    ) -> None:
        self.model, self.ids = model, tuple(ids)
        if not self.ids or len(self.ids) > MAX_HANDLES or len(set(self.ids)) < len(self.ids):
            raise InvalidArgument(f"a batch has from 1 to {MAX_HANDLES} session ids, each once")
        self._client, self._context = client, context
        self._crew = Crew(context, model, self.ids, create=create, durability=durability)
        self._turn = asyncio.Lock()

    @property
    def position(self) -> Array:
        """(k,) uint64, timesteps since each row's base state, by the last replies."""
        return self._crew.position.copy()

    @property
    def durable_position(self) -> Array:
        """(k,) uint64, timesteps since each row's base state that the store holds, by the last replies."""
        return self._crew.durable_position.copy()

    @property
    def incarnation(self) -> Array:
        """(k, 16) uint8, the id of each session's life, by the last replies."""
        return self._crew.incarnation.copy()

    @property
    def created(self) -> Array:
        """(k,) bool, whether the last operation created the session."""
        return self._crew.created.copy()

    async def predict(
        self,
        x: Inputs,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        return_states: bool = False,
        return_sequences: bool = True,
        commit: bool = True,
        timeout: float | None = None,
    ) -> Prediction:
        """The model's outputs for a chunk of each row, from its session's state, which moves on.

        Args:
            x: one timestep a row (k, *shape) or chunks (k, T, *shape); a dict of such by input name, for several.
            lengths: (k,), how many timesteps of each row count, from 0 to T.
            mask: (k, T); timesteps with False change nothing and repeat the row's output before them, or zeros.
            return_states: also return the states after each row's last timestep, by name, (k, *shape).
            return_sequences: all timesteps of an output; False: each row's last that counts.
            commit: False: what if; the sessions stay as they are.
            timeout: seconds for all attempts.

        Returns:
            One array, or a dict by output name where there are several: (k, T, ...), or (k, ...) for one timestep.

        """
        model = await self._client.known(self.model, timeout)
        given = to_columns(model, x, len(self.ids), lengths=lengths, mask=mask)
        if return_states and len(given.rows) < len(self.ids):
            raise InvalidArgument("return_states needs at least one timestep that counts in every row")
        options = inference_pb2.PredictOptions(
            return_states=return_states, return_sequences=return_sequences, commit=commit
        )
        timed = frozenset(spec.name for spec in model.outputs if spec.has_time_axis and return_sequences)
        gathered, errors = Gathering(len(self.ids), given.timesteps, timed), dict[int, RecurraError]()
        if len(given.rows):
            patience = self._context.patience(timeout)
            frame = columns(given.tensors(), options, given.lengths)
            async with self._turn:
                exposure = self._crew.exposure
                if exposure.due():  # those of this are committed by it
                    await self._crew.secure(np.setdiff1d(exposure.older(HALF), given.rows), patience)
                errors = await together.predict(self._crew, frame, given.rows, gathered, patience)
        outputs = gathered.as_given(given)
        self._raise(errors, outputs, len(given.rows))
        if outputs is None:
            raise InvalidArgument("no timestep of any row counts")
        return both(outputs, gathered.states if return_states else None)

    async def reset(
        self, *names: str, values: Mapping[str, ArrayLike] | None = None, timeout: float | None = None
    ) -> None:
        """Put every session back to the fresh state, wholly or only the named states or layers; as AsyncSession.reset.

        `values`: the same for all rows, by state name, without a batch axis.
        """
        model = await self._client.known(self.model, timeout)
        check_names(model, names)
        request = session_pb2.ResetStateRequest(
            model=self.model,
            sessions=[""],
            operations=[session_pb2.Operation()],
            states=names,
            values=state_tensors(model, values or {}),
        )
        patience = self._context.patience(timeout)
        async with self._turn:
            self._raise(await together.reset(self._crew, request, patience))

    async def state(self, *, timeout: float | None = None) -> dict[str, Array]:
        """The states by name, (k, *shape), as the store holds them; reads only."""
        gate = asyncio.Semaphore(CALLS_AT_ONCE)

        async def read(session: str) -> dict[str, Array] | RecurraError:
            request = session_pb2.GetStateRequest(model=self.model, session=session)
            async with gate:
                try:
                    return to_states((await self._context.read(GET_STATE, request, timeout)).states)
                except RecurraError as error:
                    return error

        rows = await asyncio.gather(*map(read, self.ids))
        self._raise({row: found for row, found in enumerate(rows) if isinstance(found, RecurraError)})
        found = [row for row in rows if not isinstance(row, RecurraError)]
        return {name: np.stack([row[name] for row in found]) for name in found[0]}

    async def end(self, *, timeout: float | None = None) -> None:
        """End every session and forget its state. Another operation of this handle starts a new life of them."""
        patience = self._context.patience(timeout)
        async with self._turn:
            errors = await together.end(self._crew, patience)
            self._crew.frames.cancel()
            self._raise(errors)

    async def follow(self, *, timeout: float | None = None) -> None:
        """Continue every row from where its session stands, whoever brought it there."""
        patience = self._context.patience(timeout)
        async with self._turn:
            self._raise(await together.follow(self._crew, patience))

    async def close(self) -> None:
        """Give the batch's stream up; the sessions stay, and so does the handle.

        Before, the store is to hold all that was acknowledged. Raises where that is not sure, as for predict.
        """
        async with self._turn:
            errors = await self._crew.secure(self._crew.exposure.any(), self._context.patience(None))
            self._crew.frames.cancel()
            self._raise(errors)

    def _raise(self, errors: Mapping[int, RecurraError], outputs: object = None, rows: int | None = None) -> None:
        whole = same_error(errors, len(self.ids) if rows is None else rows)
        if whole is not None:
            raise whole
        if errors:
            raise BatchError({self.ids[row]: error for row, error in sorted(errors.items())}, outputs)
