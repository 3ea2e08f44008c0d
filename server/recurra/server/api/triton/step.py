"""A ModelInfer as a block of the engine, and the block's answer as a reply.

A request names no operation that it continues: it goes on from whatever is there, and is a new step each time, unless
the model's retry_by_id makes its id an operation's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.inference import service_pb2
from recurra.server.api import inputs, operations
from recurra.server.api.triton import sequences
from recurra.server.api.triton.front import SEQUENCE_IDS, Front
from recurra.server.api.triton.refusals import told
from recurra.server.api.triton.tensors import arrays
from recurra.server.engine.digest import salt
from recurra.server.engine.engine import Engine
from recurra.server.engine.operation import Block, Create, Kind
from recurra.wire.errors import InvalidArgument, Overloaded, RecurraError

Array = NDArray[Any]


class Step:
    """One request on its way: a step of a sequence, or of each row's own."""

    def __init__(self, front: Front, request: service_pb2.ModelInferRequest, wait_seconds: float | None) -> None:
        """Submits it. Raises what Triton's clients are told."""
        self._front, self.id, self._sequences = front, request.id, [""]
        self._timed = False
        try:
            self._submit(request, wait_seconds)
        except RecurraError as error:
            raise self._told(error) from None

    def _submit(self, request: service_pb2.ModelInferRequest, wait_seconds: float | None) -> None:
        front, engine = self._front, self._front.engine
        asked, sent = sequences.asked(request), arrays(request)
        self._timed = asked.timeout > 0
        self._wanted = _wanted(front, request.outputs)
        names = self._sequences = sequences.names(front, asked, sent)
        chunk, timesteps = self._chunk(sent, end=asked.end)
        count, config = len(names), front.model.config
        wait = min(asked.timeout or operations.LONGEST_WAIT_SECONDS, wait_seconds or operations.LONGEST_WAIT_SECONDS)
        named = config.retry_by_id and request.id
        self.block = Block(
            kind=Kind.PREDICT,
            slots=_slots(engine, names),
            ids=operations.ids(_id(request.id) * count if named else os.urandom(operations.ID_BYTES * count), count),
            afters=np.zeros((count, 2), np.uint64),
            inputs=chunk,
            timesteps=timesteps,
            salt=_salt(timesteps, asked.start, asked.end),
            closes=asked.end,
            replicated=config.durability == "replicated",
            create=Create.ANEW if asked.start else Create.NEVER,
            ttl_ms=int(config.session_ttl * 1000),
            deadline=asyncio.get_running_loop().time() + wait,
        )
        engine.submit(self.block)

    def _chunk(self, sent: dict[str, Array], *, end: bool) -> tuple[list[Array], int]:
        front = self._front
        if sent.keys() != front.inputs.keys():
            got, want = (", ".join(f"'{name}'" for name in names) or "none" for names in (sent, front.inputs))
            raise InvalidArgument(f"inputs {got}; model '{front.model.name}' takes {want}")
        taken = {}
        self._lone = True
        for name, tensor in front.inputs.items():
            taken[name] = tensor.taken(sent[name])
            self._lone &= not tensor.lone or sent[name].ndim < taken[name].ndim
            if taken[name].ndim and len(taken[name]) != len(self._sequences):
                raise InvalidArgument(
                    f"input '{name}' has a batch of {len(taken[name])}: one sequence has a batch of 1; several are "
                    f"named, one a row, by the BYTES input '{SEQUENCE_IDS}'"
                )
        for control in front.controls:
            taken[control.spec.name] = control.column(self._sequences, end=end)
        chunk, timesteps = inputs.fit(front.model.signature, taken, len(self._sequences))
        if end and timesteps > 1 and front.told_of_the_end:
            raise InvalidArgument("the last step of a sequence has one timestep: the model is told that it is the last")
        return chunk, timesteps

    async def done(self) -> service_pb2.ModelInferResponse:
        """The reply. Raises what Triton's clients are told."""
        try:
            await self.block.done
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self.block.errors:
            raise self._failed()
        front, block = self._front, self.block
        response = service_pb2.ModelInferResponse(
            model_name=front.model.name, model_version=front.model.version, id=self.id
        )
        for at in self._wanted:
            tensor = front.outputs[at]
            array = tensor.given(block.outputs[at], lone=self._lone)
            response.outputs.add(name=tensor.spec.name, datatype=tensor.datatype, shape=array.shape)
            response.raw_output_contents.append(array.astype(tensor.spec.dtype, copy=False).tobytes())
        return response

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._front.engine.cancel(self.block)

    def _failed(self) -> RecurraError:
        errors = self.block.errors
        row = min(errors)
        error = self._told(errors[row], self._sequences[row])
        if len(self._sequences) > 1:
            rows = ",".join(map(str, sorted(errors)))
            error.args = (
                f"rows {rows[:200]} of {len(self._sequences)} failed, the others are applied; row {row}: {error}",
            )
            error.metadata = error.metadata | {"failed_rows": rows}
        return error

    def _told(self, error: RecurraError, sequence: str = "") -> RecurraError:
        return told(error, self._front.model.name, sequence=sequence, timeout=self._timed)


def _slots(engine: Engine, names: Sequence[str]) -> NDArray[np.intp]:
    """The sessions' slots. Raises Overloaded."""
    if len(names) == 1:
        return np.array([engine.slot(names[0])])
    slots, uses = np.empty(len(names), np.intp), np.empty(len(names), np.int64)
    for row, name in enumerate(names):
        slots[row] = engine.slot(name)
        uses[row] = engine.slots.uses[slots[row]]
    if (engine.slots.uses[slots] != uses).any():
        raise Overloaded("the batch has more sequences than there are free slots", retry_after=0.1)
    return slots


def _wanted(front: Front, outputs: Sequence[service_pb2.ModelInferRequest.InferRequestedOutputTensor]) -> Sequence[int]:
    """Which outputs are asked for, by index."""
    if not outputs:
        return range(len(front.outputs))
    names = [tensor.spec.name for tensor in front.outputs]
    for output in outputs:
        if output.name not in names:
            raise InvalidArgument(f"unexpected inference output '{output.name}' for model '{front.model.name}'")
        for parameter in output.parameters:
            if parameter in ("classification", "shared_memory_region"):
                raise InvalidArgument(f"output '{output.name}': this server does not offer '{parameter}'")
    return [names.index(output.name) for output in outputs]


@lru_cache(maxsize=1024)
def _salt(timesteps: int, start: bool, end: bool) -> int:  # noqa: FBT001
    """The digest of all that makes a step besides its input."""
    return salt(
        operations.options_salt(Kind.PREDICT, timesteps, return_states=False, return_sequences=True), start, end
    )


def _id(request_id: str) -> bytes:
    """The operation's id that a request's stands for."""
    return blake2b(request_id.encode(), digest_size=operations.ID_BYTES).digest()
