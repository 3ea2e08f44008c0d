"""What a batch sent, as columns, and the rows that did not go well, one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recurra.client.course import Course, perform
from recurra.client.delivery import Delivery, doubt, row_reply
from recurra.client.frame_stream import FrameStream
from recurra.client.frames import Ids, cut, kind, merge, normal, row_errors, take
from recurra.client.operation import Operation, Reply, Step
from recurra.client.patience import Patience
from recurra.v1 import inference_pb2, session_pb2
from recurra.wire.errors import DeadlineExceeded, InvalidArgument, RecurraError

Outcome = Reply | RecurraError
CALLS_AT_ONCE: Final = 64
_MERGED_BYTES: Final = 4 << 20  # of frames that are sent as one


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
    """One operation of each of some rows, sent together.

    Attributes:
        rows: (n,).
        ids: (n, 16).
        afters: (n, 16), what each continued.
        request: a frame's columns, or a reset of one session, the same for all; None once the window forgot it.
        before: (n,), which of all that was kept has the row's operation before this.
        nbytes: what all this takes in the window.

    """

    rows: NDArray[np.int64]
    ids: Ids
    afters: Ids
    request: inference_pb2.Frame | session_pb2.ResetStateRequest | None
    nbytes: int
    before: NDArray[np.int64]

    def forget(self) -> None:
        """Let go of the inputs."""
        self.request = None

    def place(self, row: int) -> int:
        """The row's place in the columns."""
        return int(np.flatnonzero(self.rows == row)[0])

    def operation(self, place: int) -> Operation:
        """One row's own operation."""
        request = self.request
        if isinstance(request, inference_pb2.Frame):
            request = take(request, np.array([place]))
        after = self.afters[place].tobytes() if self.afters[place].any() else b""
        asked = normal(request) if isinstance(request, inference_pb2.Frame) else request
        return Operation(self.ids[place].tobytes(), request, 0, after, kept=True, asked=asked)


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
    ways = {row: way for row, (way, _, _) in rows.items()}
    return await drive(frames, ways, courses, patience, {row: (step, error) for row, (_, step, error) in rows.items()})


async def drive(
    frames: FrameStream,
    ways: Mapping[int, Delivery],
    courses: Mapping[int, Course],
    patience: Patience,
    first: Mapping[int, tuple[Step, RecurraError | None]],
) -> dict[int, Outcome]:
    """Follow the courses of some rows together. `first`: what a first attempt at a step met.

    Returns, by row, the reply, or the error that it finally failed with.
    """
    steps: dict[int, Step] = {}
    met: dict[int, Outcome] = {}
    done: dict[int, Outcome] = {}
    for row, course in courses.items():
        steps[row] = next(course)
        step, error = first.get(row, (None, None))
        if error is not None and steps[row] is step:
            met[row] = error
    try:
        while steps:
            outcomes = await _round({row: ways[row] for row in steps}, steps, frames, patience, met)
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
    for row, outcome in met.items():
        _doubt(steps[row], outcome)
    waiting = [row for row in steps if row not in outcomes]
    while True:
        if waiting:
            for row, outcome in (await _once(ways, {row: steps[row] for row in waiting}, frames, patience)).items():
                _doubt(steps[row], outcome)
                # Time that ran out while waiting for a server that is away: that it is away tells more.
                if row not in outcomes or not isinstance(outcome, DeadlineExceeded):
                    outcomes[row] = outcome
        again = {row: error for row, error in outcomes.items() if isinstance(error, RecurraError) and error.retryable}
        if not again or not await patience.pause(next(iter(again.values()))):
            return outcomes
        waiting = list(again)


def _doubt(step: Step, outcome: Outcome) -> None:
    if isinstance(outcome, RecurraError):
        doubt(step, outcome)


async def _once(
    ways: Mapping[int, Delivery], steps: Mapping[int, Step], frames: FrameStream, patience: Patience
) -> dict[int, Outcome]:
    """One attempt at each step: those of frames on the stream, as many in one as can be, the others as calls."""
    framed = {
        row: step
        for row, step in steps.items()
        if isinstance(step, Operation) and isinstance(step.request, inference_pb2.Frame)
    }
    plain = [row for row in steps if row not in framed]
    gate = asyncio.Semaphore(CALLS_AT_ONCE)

    async def call(row: int) -> dict[int, Outcome]:
        async with gate:
            try:
                return {row: await ways[row].once(steps[row], patience.left)}
            except RecurraError as error:
                return {row: error}

    asking = [call(row) for row in plain]
    asking += [_ask(frames, some, patience) for some in _alike({row: ways[row].frame(framed[row]) for row in framed})]
    outcomes: dict[int, Outcome] = {}
    for some in await asyncio.gather(*asking):
        outcomes |= some
    return outcomes


def _alike(frames: Mapping[int, inference_pb2.Frame]) -> list[dict[int, inference_pb2.Frame]]:
    """Frames of one row each, in groups that can travel as one."""
    groups: dict[object, list[dict[int, inference_pb2.Frame]]] = {}
    for row, frame in frames.items():
        nbytes = frame.ByteSize()
        found = groups.setdefault(kind(frame), [{}])
        if (len(found[-1]) + 1) * nbytes > _MERGED_BYTES and found[-1]:
            found.append({})
        found[-1][row] = frame
    return [some for found in groups.values() for some in found]


async def _ask(frames: FrameStream, asked: Mapping[int, inference_pb2.Frame], patience: Patience) -> dict[int, Outcome]:
    """Send frames of one row each as one."""
    try:
        result = await frames.exchange(merge(list(asked.values())), timeout=patience.left)
    except InvalidArgument as error:
        if len(asked) == 1:
            return dict.fromkeys(asked, error)
        outcomes: dict[int, Outcome] = {}  # one of them is malformed: which, is told by asking each
        for some in await asyncio.gather(*(_ask(frames, {row: frame}, patience) for row, frame in asked.items())):
            outcomes |= some
        return outcomes
    except RecurraError as error:
        return dict.fromkeys(asked, error)
    errors = row_errors(result)
    return {row: errors.get(place) or row_reply(cut(result, place)) for place, row in enumerate(asked)}
