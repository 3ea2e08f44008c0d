"""Long chunks: run in pieces, so that other sessions have their turn in between, and committed once."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.models import Model, Signature
from recurra.server.engine.batch import Batch
from recurra.server.engine.seams import Runner, States, Step
from recurra.wire.errors import DeadlineExceeded

Array = NDArray[Any]

PIECE: Final = 32  # timesteps


def cuttable(model: Model) -> bool:
    """Whether a chunk gives the same in pieces."""
    signature = model.signature
    timed = all(spec.has_time_axis for spec in signature.inputs)
    return model.self_test.chunked and not signature.chunk_sizes and timed


async def run_long(runner: Runner, signature: Signature, batch: Batch, states: States, *, fetch: bool) -> Step:
    """Run a batch from `states` piece by piece; see Runner.run.

    Raises DeadlineExceeded if meanwhile nobody waits for it any more, and whatever the model raises.
    """
    pieces: list[list[Array]] = []
    for start in range(0, batch.head.timesteps, PIECE):
        if all(block.abandoned for block, _ in batch.parts):
            raise DeadlineExceeded("cancelled while it was run; no timestep was consumed")
        last = start + PIECE >= batch.head.timesteps
        piece = [array[:, start : start + PIECE] for array in batch.inputs]
        step = await runner.run(piece, states, fetch=fetch and last)
        pieces.append(step.outputs)
        states = step.states
    outputs = [
        np.concatenate(parts, axis=1) if spec.has_time_axis else parts[-1]
        for spec, parts in zip(signature.outputs, zip(*pieces, strict=True), strict=True)
    ]
    return Step(outputs, states)
