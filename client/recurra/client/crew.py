"""A batch's histories as columns: a row needs a History of its own only while something is wrong with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial

import numpy as np
from numpy.typing import NDArray

from recurra.client.course import restore
from recurra.client.delivery import Context, Delivery
from recurra.client.exposure import Exposure
from recurra.client.frame_stream import FrameStream
from recurra.client.frames import Ids
from recurra.client.history import History
from recurra.client.model import read_time
from recurra.client.operation import Create, Operation
from recurra.client.patience import Patience
from recurra.client.rows import Outcome, Sent, drive, settle
from recurra.client.standing import CreateOption, Durability, Standing
from recurra.v1 import inference_pb2, session_pb2
from recurra.wire.errors import (
    AlreadyApplied,
    DataLoss,
    Mismatch,
    ModelChanged,
    RecurraError,
    RunFailed,
    SessionClosed,
    SessionExpired,
    SessionNotFound,
)

Rows = NDArray[np.int64]
Trouble = dict[int, tuple[Delivery, Operation, RecurraError | None]]
"""By row: how to reach its session, an operation to perform, and the error that a first attempt met."""


class Crew:
    """k sessions: where each stands by the last replies, and the operations that brought it there.

    Attributes:
        position, durable_position: (k,) uint64.
        incarnation: (k, 16) uint8.
        created: (k,) bool.
        expire_time: the latest told.
        last: (k, 16), the id of the last operation known to be applied; zeros before any.
        apart: (k,) bool, rows with a history of their own: the fate of an operation is not known.

    """

    def __init__(
        self,
        context: Context,
        model: str,
        ids: Sequence[str],
        *,
        create: CreateOption,
        durability: Durability | None,
        room: int | None = None,
    ) -> None:
        """`room`: k, where `ids` may grow."""
        k = len(ids) if room is None else room
        self.context, self.model, self.ids = context, model, ids
        self.create, self.durability = create, durability
        self.frames = FrameStream(context.replicas, model, ids)
        self.position, self.durable_position = np.zeros(k, np.uint64), np.zeros(k, np.uint64)
        self.incarnation, self.created = np.zeros((k, 16), np.uint8), np.zeros(k, bool)
        self.expire_time: datetime | None = None
        self.last: Ids = np.zeros((k, 16), np.uint8)
        self.apart = np.zeros(k, bool)
        self._ended = np.zeros(k, bool)
        self._sent: deque[Sent] = deque()  # oldest first, as far back as the window reaches
        self._dropped = 0  # how many came before them
        self._latest = np.full(k, -1)  # which of all has the row's last operation
        self.exposure = Exposure(context.window, k)
        self._ways: dict[int, Delivery] = {}

    def fresh(self, rows: Rows) -> NDArray[np.bool_]:
        """(n,), which of `rows` open a session, or a new life of it, with their next operation."""
        fresh: NDArray[np.bool_] = self._ended[rows] | ~self.last[rows].any(1)
        return fresh

    def opening(self, *, dry: bool = False) -> Create:
        """What a fresh row's operation says about a session that is not there."""
        if self.create == "must_exist":
            return Create.NEVER
        return Create.IF_MISSING if dry and self.create == "if_missing" else Create.NEW

    def name(
        self, request: inference_pb2.Frame | session_pb2.ResetStateRequest, rows: Rows, *, dry: bool = False
    ) -> Sent:
        """A new operation for each of `rows`, which continues its last."""
        ids = np.frombuffer(bytearray(self.context.chance.entropy(16 * len(rows))), np.uint8).reshape(-1, 16)
        sent = Sent(rows, ids, self.last[rows], request, 96 * len(rows) + request.ByteSize(), self._latest[rows])
        if not dry:
            while self._sent and self._sent[0].request is None:
                self._sent.popleft()
                self._dropped += 1
            self._latest[rows] = self._dropped + len(self._sent)
            self._sent.append(sent)
        return sent

    def _before(self, row: int, last: bytes) -> Iterator[Operation]:
        """The row's operations up to `last`, as far back as they follow each other and are kept, newest first."""
        at = self._latest[row]
        while at >= self._dropped:
            sent = self._sent[at - self._dropped]
            place = sent.place(row)
            if sent.ids[place].tobytes() == last:
                operation = sent.operation(place)
                operation.done, last = True, operation.after
                yield operation
            at = sent.before[place]

    def advance(self, rows: Rows, ids: Ids, result: inference_pb2.FrameResult, places: Rows) -> None:
        """Note that operations of `rows` were applied, as the result's `places` tell."""
        positions = np.frombuffer(result.positions, "<u8")
        self.last[rows], self._ended[rows] = ids, False
        self.position[rows] = positions[places]
        durable = np.frombuffer(result.durable_positions, "<u8") if result.durable_positions else positions
        self.durable_position[rows] = durable[places]
        self.exposure.told(rows, durable=self.durable_position[rows] >= self.position[rows])
        self.incarnation[rows] = np.frombuffer(result.incarnations, np.uint8).reshape(-1, 16)[places]
        self.created[rows] = np.frombuffer(result.created, np.uint8)[places] if result.created else 0
        if result.HasField("expire_time"):
            self._expires(read_time(result.expire_time))

    def note(
        self, row: int, last: bytes, standing: Standing | None, *, ended: bool = False, behind: bool = False
    ) -> None:
        """Note where one row stands; `behind`: not yet at its last operation again."""
        self.last[row] = np.frombuffer(last or bytes(16), np.uint8)
        self._ended[row] = ended
        if standing is not None:
            self.position[row], self.durable_position[row] = standing.position, standing.durable_position
            self.incarnation[row] = np.frombuffer(standing.incarnation or bytes(16), np.uint8)
            self.created[row] = standing.created
            self.exposure.told(np.array([row]), durable=np.array([standing.durable and not behind]))
            self._expires(standing.expire_time)

    def way(self, row: int) -> Delivery:
        """The row's own history, and the way to its session."""
        if row in self._ways:
            return self._ways[row]
        history = History(self.context.window, create=self.create, entropy=self.context.chance.entropy)
        last = self.last[row].tobytes() if self.last[row].any() else b""
        standing = None
        if self.incarnation[row].any():
            standing = Standing(
                incarnation=self.incarnation[row].tobytes(),
                position=int(self.position[row]),
                durable_position=int(self.durable_position[row]),
                expire_time=self.expire_time,
            )
        history.resume(last, standing, partial(self._before, row, last), ended=bool(self._ended[row]))
        return Delivery(
            self.context,
            history,
            self.model,
            self.ids[row],
            frames=self.frames,
            handle=row,
            durability=self.durability,
        )

    def part(
        self, sent: Sent, row: int, create: Create, *, unsure: bool, dry: bool = False
    ) -> tuple[Delivery, Operation]:
        """Give the row a history of its own, with its operation of `sent` still to be settled."""
        way, operation = self.way(row), sent.operation(sent.place(row))
        operation.opening, operation.create = not way.history.last, create
        operation.unsure, operation.dry = unsure, dry
        way.history.adopt(operation)
        self._ways[row], self.apart[row] = way, True
        return way, operation

    async def settle(self, sent: Sent | None, trouble: Trouble, patience: Patience) -> dict[int, Outcome]:
        """Perform what is left, row by row; those whose fate is known afterwards return to the columns.

        `sent`: where to write the names that the operations have in the end.
        """
        if not trouble:
            return {}
        for row, (way, _, _) in trouble.items():
            self._ways[row], self.apart[row] = way, True
        try:
            return await settle(self.frames, trouble, patience)
        finally:
            for row, (way, operation, _) in trouble.items():
                history = way.history
                self.note(row, history.last, history.standing, ended=history.ended, behind=history.behind)
                if operation.done and sent is not None:
                    place = sent.place(row)
                    sent.ids[place] = np.frombuffer(operation.id, np.uint8)
                    sent.afters[place] = np.frombuffer(operation.after or bytes(16), np.uint8)
                if history.settled:
                    del self._ways[row]
                    self.apart[row] = False

    async def secure(self, rows: Rows, patience: Patience) -> dict[int, RecurraError]:
        """Have the store hold all that was acknowledged of some rows. Returns why rows failed.

        What comes meanwhile of a row has the last word; where somebody else wrote it, its next operation tells.
        """
        ways = {row: self.way(row) for row in rows.tolist()}
        outcomes = await drive(
            self.frames, ways, {row: restore(way.history) for row, way in ways.items()}, patience, {}
        )
        errors: dict[int, RecurraError] = {}
        for row, outcome in outcomes.items():
            if isinstance(outcome, RecurraError):
                errors[row] = outcome
                if isinstance(outcome, _LOST):  # there is nothing left to secure
                    self.exposure.told(np.array([row]), durable=np.array([True]))
            elif self.apart[row] or self.last[row].tobytes() == ways[row].history.last:
                self.note(row, ways[row].history.last, ways[row].history.standing)
        return errors

    def forget(self, row: int) -> None:
        """Drop what the row's own history did not settle."""
        self._ways.pop(row, None)
        self.apart[row] = False

    def leave(self, row: int) -> None:
        """Know nothing of the row's session any more."""
        self.forget(row)
        self.note(row, b"", Standing())
        self._latest[row] = -1

    def _expires(self, moment: datetime | None) -> None:
        if moment is not None and (self.expire_time is None or moment > self.expire_time):
            self.expire_time = moment


def same_error(errors: Mapping[int, RecurraError], rows: int) -> RecurraError | None:
    """The one error that every row failed with, unless it tells of sessions."""
    different = {(type(error), str(error)) for error in errors.values()}
    error = next(iter(errors.values()), None)
    return None if isinstance(error, _OF_SESSIONS) or len(errors) != rows or len(different) != 1 else error


_LOST = (Mismatch, SessionNotFound, SessionExpired, SessionClosed, DataLoss, ModelChanged)
_OF_SESSIONS = (*_LOST, AlreadyApplied, RunFailed)
