"""What a batch sent, as columns, and the rows that did not go well, one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recurra.client.course import Course, perform
from recurra.client.delivery import Delivery, doubt, row_reply
from recurra.client.frames import FrameStream, Ids, normal, take
from recurra.client.operation import Operation, Reply, Step
from recurra.client.patience import Patience
from recurra.v1 import inference_pb2, session_pb2
from recurra.wire.errors import DeadlineExceeded, RecurraError

Outcome = Reply | RecurraError
CALLS_AT_ONCE: Final = 64


class BatchError(Exception):
    """Some sessions of a batch failed; the others went on.

    Attributes:
        errors: why, by session id.
        outputs: what predict would have returned, with zeros at the rows that failed; None for other operations.

    """

    def __init__(self, errors: Mapping[str, RecurraError], outputs: object = None) -> None:
        shown = "; ".join(f"{session}: {error.reason}: {error}" for session, error in list(errors.items())[:3])
        super().__init__(f"{len(errors)} of the batch's sessions failed: {shown}{' ...' if len(errors) > 3 else ''}")  # noqa: PLR2004
        self.errors = dict(errors)
        self.outputs = outputs


@dataclass(eq=False)
class Sent:
    """One operation of each of a batch's rows, sent together.

    Attributes:
        ids: (k, 16); zeros at rows that took no part.
        afters: (k, 16), what each continued.
        request: a frame's columns, or a reset of one session, the same for all; None once the window forgot it.
        place: (k,), the row's place in the frame.
        nbytes: what all this takes in the window.

    """

    ids: Ids
    afters: Ids
    request: inference_pb2.Frame | session_pb2.ResetStateRequest | None
    place: NDArray[np.int64]
    nbytes: int

    @classmethod
    def nothing(cls, k: int) -> Sent:
        """No operation at any of k rows."""
        return cls(np.zeros((k, 16), np.uint8), np.zeros((k, 16), np.uint8), None, np.zeros(k, np.int64), 0)

    def forget(self) -> None:
        """Let go of the inputs."""
        self.request = None

    def operation(self, row: int) -> Operation:
        """The row's own operation."""
        request = self.request
        if isinstance(request, inference_pb2.Frame):
            request = take(request, self.place[row : row + 1])
        after = self.afters[row].tobytes() if self.afters[row].any() else b""
        asked = normal(request) if isinstance(request, inference_pb2.Frame) else request
        return Operation(self.ids[row].tobytes(), request, 0, after, kept=True, asked=asked)


def chain(sent: Sequence[Sent], row: int, last: bytes) -> list[Operation]:
    """The row's operations up to `last`, as far back as they follow each other, oldest first."""
    operations: list[Operation] = []
    for one in reversed(sent):
        if one.ids[row].tobytes() == last:
            operation = one.operation(row)
            operation.done = True
            operations.append(operation)
            last = operation.after
    return operations[::-1]


async def settle(
    frames: FrameStream, rows: Mapping[int, tuple[Delivery, Operation, RecurraError | None]], patience: Patience
) -> dict[int, Outcome]:
    """Perform one operation of each of some rows, together: what each is to send next travels in one round.

    Args:
        rows: by row, how to reach its session, its operation, and the error that a first attempt met.

    Returns:
        By row, the reply, or the error that it finally failed with.
    """
    courses: dict[int, Course] = {row: perform(way.history, operation) for row, (way, operation, _) in rows.items()}
    steps: dict[int, Step] = {}
    met: dict[int, Outcome] = {}
    done: dict[int, Outcome] = {}
    for row, course in courses.items():
        steps[row] = next(course)
        first = rows[row][2]
        if first is not None and steps[row] is rows[row][1]:
            met[row] = first
    try:
        while steps:
            outcomes = await _round({row: rows[row][0] for row in steps}, steps, frames, patience, met)
            met = {}
            for row, outcome in outcomes.items():
                try:
                    steps[row] = courses[row].send(outcome)
                except StopIteration as stop:
                    done[row] = stop.value
                    del steps[row]
                except RecurraError as error:
                    done[row] = error
                    del steps[row]
    except BaseException:
        for step in steps.values():
            doubt(step, None)
        raise
    finally:
        for course in courses.values():
            course.close()
    return done


async def _round(
    ways: Mapping[int, Delivery],
    steps: Mapping[int, Step],
    frames: FrameStream,
    patience: Patience,
    met: Mapping[int, Outcome],
) -> dict[int, Outcome]:
    """Send each row's step until each is answered for good or time runs out."""
    outcomes: dict[int, Outcome] = dict(met)
    waiting = [row for row in steps if row not in outcomes]
    while True:
        if waiting:
            for row, outcome in (await _once(ways, {row: steps[row] for row in waiting}, frames, patience)).items():
                # Time that ran out while waiting for a server that is away: that it is away tells more.
                if row not in outcomes or not isinstance(outcome, DeadlineExceeded):
                    outcomes[row] = outcome
        again = {row: error for row, error in outcomes.items() if isinstance(error, RecurraError) and error.retryable}
        for row, error in outcomes.items():
            if isinstance(error, RecurraError):
                doubt(steps[row], error)
        if not again or not await patience.pause(next(iter(again.values()))):
            return outcomes
        waiting = list(again)


async def _once(
    ways: Mapping[int, Delivery], steps: Mapping[int, Step], frames: FrameStream, patience: Patience
) -> dict[int, Outcome]:
    """One attempt at each step: those of frames on the batch's stream, the others as calls side by side."""
    framed = {
        row: step
        for row, step in steps.items()
        if isinstance(step, Operation) and isinstance(step.request, inference_pb2.Frame)
    }
    plain = [row for row in steps if row not in framed]
    gate = asyncio.Semaphore(CALLS_AT_ONCE)

    async def call(row: int) -> Outcome:
        async with gate:
            try:
                return await ways[row].once(steps[row], patience.left)
            except RecurraError as error:
                return error

    outcomes: dict[int, Outcome] = dict(zip(plain, await asyncio.gather(*map(call, plain)), strict=True))
    if framed:
        try:
            results = await frames.exchange(
                [ways[row].frame(operation) for row, operation in framed.items()], timeout=patience.left
            )
        except RecurraError as error:
            return outcomes | dict.fromkeys(framed, error)
        for row, result in zip(framed, results, strict=True):
            outcomes[row] = _outcome(result)
    return outcomes


def _outcome(result: inference_pb2.FrameResult) -> Outcome:
    try:
        return row_reply(result)
    except RecurraError as error:
        return error
