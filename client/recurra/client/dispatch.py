"""Operations of many sessions, sent in frames: what waits, what is on its way, and who is told what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from typing import Final

from recurra.client import together
from recurra.client.crew import Crew, Rows
from recurra.client.delivery import Context
from recurra.client.exposure import HALF, LATE
from recurra.client.frame_stream import MAX_HANDLES
from recurra.client.lines import Lines
from recurra.client.linger import Linger
from recurra.client.model import Model
from recurra.client.packing import Answer, Asked, Unpacking, pack
from recurra.client.roster import IDLE_SECONDS, Roster
from recurra.client.standing import CreateOption, Durability
from recurra.v1 import inference_pb2
from recurra.wire.errors import InvalidArgument, RecurraError, Unreachable

MAX_ASKED: Final = 8192  # taken and not answered
_MAX_BYTES: Final = 32 << 20
_MAX_ROWS: Final = 1024  # of a frame
_MAX_FRAME_BYTES: Final = 4 << 20
_MAX_FRAMES: Final = 8  # on their way
_SECURED_AT_ONCE: Final = 256


class Dispatch:
    """Takes operations of any number of sessions of one model, and sends them together where they come together."""

    def __init__(
        self,
        context: Context,
        model: Model,
        *,
        create: CreateOption,
        durability: Durability | None,
        options: inference_pb2.PredictOptions,
        linger: float,
        room: int = MAX_HANDLES,
    ) -> None:
        """`room`: how many sessions are known at once; then the one that was not used longest is forgotten."""
        names: list[str] = []
        self._context, self._model, self._options = context, model, options
        self._crew = Crew(context, model.name, names, create=create, durability=durability, room=room)
        self._lines = Lines(self._came)
        self._roster = Roster(self._crew, names, self._lines.__contains__, room)
        self._linger, self._seconds = Linger(linger), linger
        self._ready: list[Asked] = []
        self._ready_bytes = 0
        self._frames: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Handle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._stirred: asyncio.Future[None] | None = None
        self._unbinding: asyncio.Task[None] | None = None
        self._securing: asyncio.Task[dict[int, RecurraError]] | None = None
        self._late = False

    @property
    def full(self) -> bool:
        """Whether enough is on its way; then `stir` and look again."""
        return self._lines.count >= MAX_ASKED or self._lines.nbytes >= _MAX_BYTES

    async def stir(self) -> None:
        """Wait until something was answered."""
        if self._stirred is None:
            self._stirred = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._stirred)

    def put(self, asked: Asked) -> None:
        """Take an operation; it is sent soon."""
        self._lines.put(asked)

    def give_back(self, asked: Asked, answer: Answer) -> None:
        """Take back an answer that its caller has not seen."""
        self._lines.give_back(asked, answer)

    async def follow(self, session: str) -> None:
        """Forget what is known of a session, once its operations are answered."""
        while session in self._lines:
            await self.stir()
        self._lines.forget(session)
        row = self._roster.row(session)
        if row is not None:
            self._crew.leave(row)

    async def drain(self) -> None:
        """Wait until all that was taken is answered, and the store has it. Raises RecurraError where it may not."""
        while self._lines.count or self._securing:
            await self.stir()
        exposed = self._crew.exposure.any()
        if len(exposed):
            for error in (await self._crew.secure(exposed, self._context.patience(None))).values():
                raise error

    async def close(self) -> None:
        """Give the stream up, and what is on its way: it may be applied or not."""
        for handle in (self._looking, self._sweeping):
            if handle is not None:
                handle.cancel()
        self._looking = self._sweeping = None
        going = [*self._frames, *([self._securing] if self._securing else [])]
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)
        self._crew.frames.cancel()
        self._lines.give_up(Unreachable("the stream was closed; safe to call again with the same input"))
        self._linger, self._ready, self._ready_bytes = Linger(self._seconds), [], 0
        self.stirring()

    def now(self) -> float:
        """Seconds, never going back."""
        return self._context.chance.clock.now()

    def _came(self, asked: Asked) -> None:
        self._ready.append(asked)
        self._ready_bytes += asked.chunk.nbytes
        self._linger.came(self.now())
        self._look_again(0)

    def _look_again(self, seconds: float) -> None:
        """Look whether a frame may go: in the next turn of the loop, when all that came in this one are there."""
        loop = asyncio.get_running_loop()
        if isinstance(self._looking, asyncio.TimerHandle):
            self._looking.cancel()
            self._looking = None
        if self._looking is None:
            self._looking = loop.call_later(seconds, self._look) if seconds else loop.call_soon(self._look)

    def _look(self) -> None:
        self._looking = None
        if not self._ready or len(self._frames) >= _MAX_FRAMES:
            return  # looked again when a frame is answered
        full = len(self._ready) >= _MAX_ROWS or self._ready_bytes >= _MAX_FRAME_BYTES
        left = 0.0 if full else self._linger.left(self.now())
        if left > 0:
            self._look_again(left)
        else:
            self._send()

    def _send(self) -> None:
        """Send what waits, in as many frames as it takes: those that open sessions apart from the others."""
        if self._pressed():
            return
        going = [asked for asked in self._ready if asked.answer is not None]
        try:
            rows = self._roster.admit([asked.session for asked in going], self.now())
        except RecurraError as error:
            if not self._secure(self._crew.exposure.any(self._roster.oldest(_SECURED_AT_ONCE))):
                self._clear(len(going))
                self._answer_all(going, error)
            return
        self._clear(len(going))
        groups: dict[tuple[object, bool], list[int]] = {}
        for place, (asked, fresh) in enumerate(zip(going, self._crew.fresh(rows).tolist(), strict=True)):
            groups.setdefault((asked.chunk.form, fresh), []).append(place)
        for places in groups.values():
            for some in _frames(going, places):
                frame = asyncio.create_task(self._frame([going[place] for place in some], rows[some]))
                self._frames.add(frame)
                frame.add_done_callback(self._done)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.sweep)

    def _clear(self, sent: int) -> None:
        """Nobody waits any more: so many were sent, and the others dropped, as nobody wants them."""
        waited, self._ready, self._ready_bytes = self._ready, [], 0
        self._linger.went(len(waited), sent)
        for asked in waited:
            if asked.answer is None:
                self._lines.drop(asked)
        self.stirring()

    def _pressed(self) -> bool:
        """Whether the window might forget what the store does not hold, of sessions that rest; those that go are
        committed. Then nothing is sent until it does.
        """
        exposure = self._crew.exposure
        if not (self._late or exposure.due()):
            return False
        self._secure(self._roster.idle(exposure.older(HALF)))
        self._late = len(self._roster.idle(exposure.older(LATE))) > 0
        return self._late

    def _secure(self, rows: Rows) -> bool:
        """Have the store hold all of these rows, some at a time; `_look` again then."""
        some = rows[:_SECURED_AT_ONCE]
        if len(some) and self._securing is None:
            self._securing = asyncio.create_task(self._crew.secure(some, self._context.patience(None)))
            self._securing.add_done_callback(partial(self._secured, some))
        return len(some) > 0

    def _secured(self, rows: Rows, done: asyncio.Task[dict[int, RecurraError]]) -> None:
        self._securing, exposure = None, self._crew.exposure
        if not done.cancelled():
            done.result()
            if not len(exposure.any(rows)):
                self._secure(self._roster.idle(exposure.older(HALF)))
            self.stirring()
            self._look_again(0)

    def _done(self, frame: asyncio.Task[None]) -> None:
        self._frames.discard(frame)
        self._look_again(0)
        if not frame.cancelled() and (error := frame.exception()) is not None:
            raise error

    async def _frame(self, some: Sequence[Asked], rows: Rows) -> None:
        """Send some operations until each is answered for good."""
        waiting = dict(zip(rows.tolist(), some, strict=True))
        answers = _Answers(self, waiting, self._model, sequences=self._options.return_sequences)
        patience = self._context.patience(max(asked.timeout for asked in some))
        frame = pack([asked.chunk for asked in some], self._options)
        try:
            errors = await together.predict(self._crew, frame, rows, answers, patience)
        except InvalidArgument as error:
            if len(some) == 1:
                self._answer_all(some, error)
                return
            half = len(some) // 2  # one of them is malformed: the others go without it
            await self._frame(some[:half], rows[:half])
            await self._frame(some[half:], rows[half:])
        except Exception as error:  # noqa: BLE001 - told to the callers
            self._answer_all(waiting.values(), error)
        else:
            for row, failed in errors.items():
                self._answer_all([waiting.pop(row)], failed)

    def _answer_all(self, some: Iterable[Asked], error: Exception) -> None:
        now = self.now()
        for asked in list(some):
            self.answered(asked, copy(error), now)
        self.stirring()

    def answered(self, asked: Asked, answer: Answer, now: float) -> None:
        """Tell what came of an operation."""
        self._linger.answered(now)
        self._lines.answer(asked, answer)

    def stirring(self) -> None:
        """Wake those that wait for an answer of anybody."""
        if self._stirred is not None:
            self._stirred.set_result(None)
            self._stirred = None

    def sweep(self) -> None:
        """Free the handles of sessions that are not used; as long as any is bound, every so often."""
        frames, self._sweeping = self._crew.frames, None
        frames.leave(self._roster.unused(self.now()))
        self._unbinding = asyncio.create_task(frames.unbind(timeout=self._context.timeout))
        if frames.bound:
            self._sweeping = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.sweep)


class _Answers:
    """Tells those who wait for the rows of a frame.

    Attributes:
        waiting: by row, who was not told yet.

    """

    def __init__(self, dispatch: Dispatch, waiting: dict[int, Asked], model: Model, *, sequences: bool) -> None:
        self.waiting = waiting
        self._dispatch, self._model, self._sequences = dispatch, model, sequences

    def put(self, result: inference_pb2.FrameResult, rows: Rows, places: Rows) -> None:
        unpacking = Unpacking(self._model, result, sequences=self._sequences)
        now = self._dispatch.now()
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            asked = self.waiting.pop(row)
            self._dispatch.answered(asked, unpacking.outputs(place, asked.chunk), now)
        self._dispatch.stirring()


def _frames(some: Sequence[Asked], places: Iterable[int]) -> Iterator[list[int]]:
    """The places in as many frames as their limits ask for."""
    frame: list[int] = []
    nbytes = 0
    for place in places:
        if len(frame) == _MAX_ROWS or (frame and nbytes + some[place].chunk.nbytes > _MAX_FRAME_BYTES):
            yield frame
            frame, nbytes = [], 0
        frame.append(place)
        nbytes += some[place].chunk.nbytes
    yield frame
