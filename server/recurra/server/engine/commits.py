"""Commits in flight: a batch's new records on their way to the store, and what their answers mean."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recurra.models import Model
from recurra.server.engine import reply
from recurra.server.engine.batch import Batch
from recurra.server.engine.heads import advanced
from recurra.server.engine.judge import gone
from recurra.server.engine.operation import Block, Create
from recurra.server.engine.ownership import Ownership
from recurra.server.engine.pending import Pending
from recurra.server.engine.scheduler import Part
from recurra.server.engine.seams import Clock, States, Store
from recurra.server.engine.slots import Slots
from recurra.server.store import commit, record
from recurra.server.telemetry import Log
from recurra.wire.errors import RecurraError

Array = NDArray[Any]

_log = Log(__name__)

_MAX_FLIGHTS: Final = 2  # sent, and unsent: one more batch is run meanwhile
_NOWHERE: Final = np.uint64(np.iinfo(np.uint64).max)  # in all words of a header: no record stands there
_UNSENT: Final = b""  # in place of an answer
TOMBSTONE_MS: Final = 3_600_000  # an ended session answers CLOSED for so long


@dataclass(eq=False, slots=True, kw_only=True)
class Flight:
    """New records on their way, until the store has answered.

    Attributes:
        slots, epochs: (N,), whose.
        bases: (N,), the slots' when this began.
        expected, headers: (N,) HEADER, where the sessions stood before and stand after.
        parcel: what is to be sent yet; None once it is, and for what only waits behind others.
        answer: the store's; None where nothing is asked of it, or what was to be sent could not be.
        commits: whether it writes records, or only waits behind others that do.
        rests: (N,) bool, what was sent; what it would have rested on was given up for the others, and they are as well.
        mine: (N,) bool, which of them this replica owns once this is applied.
        batch: the operations that wait for it; None at a checkpoint.
        outputs, states: (N, ...), what their clients get.
        refusal: what they get instead, of an operation that was applied before.
    """

    slots: Array
    epochs: Array
    bases: Array
    expected: Array
    headers: Array
    started: float
    rests: NDArray[np.bool_]
    parcel: Parcel | None = None
    answer: Awaitable[list[Any]] | None = None
    commits: bool = False
    mine: NDArray[np.bool_] | None = None
    batch: Batch | None = None
    outputs: list[Array] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)
    refusal: RecurraError | None = None
    landed: bool = False


class Parcel(NamedTuple):
    """What is to be sent to the store; the slots may be others' by then.

    Attributes:
        keys, ttl_ms: (N, ...), see Store.commit.
        new: the sessions' states; None where none are sent.
        records: makes the records out of (N, state_bytes) uint8; None: what the store has is written again.
    """

    keys: Array
    ttl_ms: Array
    new: States | None = None
    records: Callable[[Array], Array] | None = None

    @property
    def coming(self) -> asyncio.Future[Any] | None:
        """Done once the states are on the host; None: they are."""
        return self.new.fetch() if self.new else None


class Commits:
    """Sends commits in the order of the runs and settles them in that order, several in flight.

    A session's next operation may be committed before this one is answered: its compare-and-set expects this one's
    header, so if this one fails, that one fails too, and both are decided anew.
    """

    def __init__(
        self,
        model: Model,
        slots: Slots,
        store: Store,
        clock: Clock,
        *,
        ownership: Ownership,
        pending: Pending,
        landed: Callable[[Flight], None],
    ) -> None:
        """`landed` is told of each flight that is settled."""
        self._slots, self._store, self._clock = slots, store, clock
        self._ownership, self._pending, self._landed = ownership, pending, landed
        self._layout, self._reply_tag = np.frombuffer(model.layout, "<u8"), reply.tag(model.signature)
        self._flights: deque[Flight] = deque()
        self._unsent: deque[Flight] = deque()  # of these
        self._coming: asyncio.Future[Any] | None = None  # what the first unsent one waits for
        self._came, self._went, self._gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @property
    def behind(self) -> bool:
        """Whether so much is on its way that what is committed may wait: the next batches grow meanwhile."""
        unsent = len(self._unsent)
        return max(unsent, len(self._flights) - unsent) >= _MAX_FLIGHTS

    def prepare(
        self, batch: Batch, rebased: Array, new: States, outputs: list[Array], states: list[Array]
    ) -> NDArray[np.bool_]:
        """Let a batch's sessions stand where its operations bring them; their records are in line, for `send`.

        Args:
            rebased: (N,) bool, whose position starts from 0.
            new: the states.
            outputs, states: (N, ...), what the clients get and the record keeps.

        Returns:
            (N,) bool, which sessions are this replica's once this is applied.
        """
        slots, closes, now_ms = batch.slots, batch.head.closes, int(self._clock.time() * 1000)
        before, tensors = self._slots.heads(slots), outputs + states
        headers = advanced(before, batch, rebased, now_ms=now_ms)
        self._slots.ttl_ms[slots] = TOMBSTONE_MS if closes else batch.ttl_ms
        headers["identity"], headers["name_bytes"] = self._slots.identities[slots], self._slots.name_bytes[slots]
        headers["layout"], headers["reply_tag"] = self._layout, self._reply_tag
        if not reply.fits(tensors):
            headers["flags"] |= record.REPLY_DROPPED
        self._slots.rebase(slots[rebased | batch.anew | (before["kind"] != record.LIVE)])
        mine = (self._slots.owned[slots] | self._ownership.claims(batch, before, now_ms)) & (not closes)
        told = {"batch": batch, "epochs": batch.epochs, "outputs": outputs, "states": states}
        kept = partial(reply.pack, tensors, rows=len(batch))
        self._line_up(slots, headers, None if closes else new, kept, mine, now_ms=now_ms, **told)
        return mine

    def checkpoint(self, slots: Array, new: States, kept: Array, *, mine: NDArray[np.bool_]) -> Flight:
        """Send where these sessions stand; nobody waits for it.

        Args:
            new: their states.
            kept: (N, R) uint8, the packed replies of their last operations.
            mine: (N,) bool, which of them this replica still owns then.
        """
        headers, now_ms, epochs = self._slots.heads(slots), int(self._clock.time() * 1000), self._slots.epoch[slots]
        flight = self._line_up(slots, headers, new, lambda: kept, mine, now_ms=now_ms, epochs=epochs)
        self.send()
        return flight

    def send(self) -> None:
        """Send what is in line, oldest first, as far as its states are on the host: the rest follows when they are."""
        while self._unsent:
            flight = self._unsent[0]
            assert flight.parcel is not None
            coming = flight.parcel.coming
            if coming is not None and not coming.done():
                if coming is not self._coming:
                    coming.add_done_callback(lambda _: self.send())
                    self._coming = coming
                return
            self._unsent.popleft()
            try:
                self._send(flight, flight.parcel)
            except Exception as error:  # noqa: BLE001 # such as MemoryError: the slots are ahead of the store
                _log.exception("commit.failed", sessions=len(flight.slots), error=error)
                self._slots.give_up(flight.slots[self._slots.epoch[flight.slots] == flight.epochs])
                flight.rests[:] = False
            flight.parcel = None
            self._slots.unpin(flight.slots)
            self._went.set()

    async def sent(self, slots: Array) -> None:
        """Wait until what is in line of these sessions is sent: what is read then is no older."""
        theirs = (flight for flight in reversed(self._unsent) if np.isin(slots, flight.slots).any())
        await self._until_sent(next(theirs, None))

    async def _until_sent(self, flight: Flight | None) -> None:
        while flight is not None and flight.parcel is not None:
            self._went.clear()
            await self._went.wait()

    def _line_up(
        self,
        slots: Array,
        headers: Array,
        new: States | None,
        kept: Callable[[], Array],
        mine: NDArray[np.bool_],
        *,
        now_ms: int,
        **more: Any,
    ) -> Flight:
        if new is not None:
            new.fetch()  # else they might be gone when this is sent
        ttl_ms, expected = self._slots.ttl_ms[slots], self._slots.expected(slots)
        headers["commit"] = np.frombuffer(os.urandom(16 * len(slots)), "<u8").reshape(-1, 2)
        headers["expire_ms"] = now_ms + ttl_ms
        self._ownership.mark(headers, mine, now_ms)
        self._slots.stands(slots, headers)
        self._slots.dirty_at[slots] = np.inf
        self._slots.owned[slots] &= mine
        names = self._slots.names[slots]
        parcel = Parcel(self._slots.keys[slots], ttl_ms, new, lambda state: record.pack(headers, names, state, kept()))
        return self._fly(slots=slots, expected=expected, headers=headers, mine=mine, parcel=parcel, **more)

    def _send(self, flight: Flight, parcel: Parcel) -> None:
        slots, state = flight.slots, np.empty((len(flight.slots), 0), np.uint8)
        rests = flight.rests = self._slots.epoch[slots] == flight.epochs
        expected = self._slots.expected(slots)
        if not rests.all():
            record.words(expected)[~rests] = _NOWHERE
        if parcel.records is None:
            records = expected.view(np.uint8).reshape(len(slots), -1)
            expected = record.headers(np.full_like(record.words(expected), _NOWHERE))
        else:
            records = parcel.records(parcel.new.to_bytes() if parcel.new else state)
            still = slice(None) if rests.all() else rests
            self._slots.sent(slots[still], flight.headers[still])
        replicated = flight.batch is not None and flight.batch.head.replicated
        flight.answer = self._store.commit(parcel.keys, expected, records, parcel.ttl_ms, replicated=replicated)

    def hold(self, batch: Batch, outputs: list[Array], states: list[Array], rebased: Array) -> None:
        """Keep a batch that changes nothing behind the commits that it rests on."""
        there = self._slots.heads(batch.slots)
        headers, counts = self._slots.heads(batch.slots), (there["kind"] == record.LIVE) & ~rebased
        headers["position"] = there["position"] * counts + np.uint64(batch.head.timesteps)
        headers["flags"] = 0
        told: dict[str, Any] = {"batch": batch, "epochs": batch.epochs, "outputs": outputs, "states": states}
        self._fly(slots=batch.slots, expected=there, headers=headers, **told)

    def confirm(self, batch: Batch, outputs: list[Array], states: list[Array], refusal: RecurraError | None) -> None:
        """Answer a duplicate behind the commits that are in flight: what it repeats may be among them.

        A replicated one is written again, with nothing new, and waits for the store's replicas.
        """
        slots, there = batch.slots, self._slots.heads(batch.slots)
        parcel = Parcel(self._slots.keys[slots], batch.ttl_ms) if batch.head.replicated else None
        told: dict[str, Any] = {"batch": batch, "outputs": outputs, "states": states, "refusal": refusal}
        epochs = self._slots.epoch[slots]
        self._fly(slots=slots, epochs=epochs, expected=there, headers=there, parcel=parcel, **told)
        self.send()

    async def landed(self, flight: Flight | None = None) -> None:
        """Wait until `flight` has landed; None: all that is in flight now."""
        if flight is None and self._flights:
            flight = self._flights[-1]
        while flight is not None and not flight.landed:
            self._gone.clear()
            await self._gone.wait()

    async def settle(self) -> None:
        """Settle flights as they are answered; runs for the engine's life."""
        try:
            while True:
                while not self._flights:
                    self._came.clear()
                    await self._came.wait()
                await self._settle_first()
        finally:
            for flight in self._flights:  # nobody will ask what became of them
                flight.landed, flight.parcel = True, None
            self._flights.clear()
            self._unsent.clear()
            self._went.set()
            self._gone.set()

    async def _settle_first(self) -> None:
        flight = self._flights[0]
        await self._until_sent(flight)
        replies: list[Any] = [commit.APPLIED] * len(flight.slots)
        if flight.answer is not None:
            try:
                replies = await flight.answer
            except RecurraError as error:
                replies = [error] * len(flight.slots)
        if not flight.rests.all():
            replies = [reply if rests else _UNSENT for reply, rests in zip(replies, flight.rests, strict=True)]
        self._flights.popleft()
        current = self._slots.epoch[flight.slots] == flight.epochs
        if replies.count(commit.APPLIED) == len(replies) and current.all() and flight.refusal is None:
            self._store_has(flight, slice(None))
            if flight.batch:
                self._pending.answer(flight.batch, flight.outputs, flight.states, flight.headers)
        else:
            self._sort_out(flight, replies, current)
        flight.landed = True
        self._landed(flight)
        self._gone.set()

    def _fly(self, *, parcel: Parcel | None = None, **columns: Any) -> Flight:
        slots, commits = columns["slots"], parcel is not None
        flight = Flight(
            bases=self._slots.bases[slots],
            started=self._clock.monotonic(),
            rests=np.ones(len(slots), bool),
            parcel=parcel,
            commits=commits,
            **columns,
        )
        self._flights.append(flight)
        if commits:
            self._unsent.append(flight)
            self._slots.pins[slots] += 1  # nobody else gets these slots before this is sent
        self._came.set()
        return flight

    def _store_has(self, flight: Flight, places: slice | Array) -> None:
        """Note what these sessions' slots may rely on now."""
        if flight.mine is not None:
            slots = flight.slots[places]
            same = self._slots.bases[slots] == flight.bases[places]  # positions of another base tell nothing
            self._slots.durable[slots[same]] = flight.headers["position"][places][same]
            if flight.mine.any():  # but not those that were released since: that is on its way
                ours = self._ownership.ours(self._slots.expected(slots))
                self._slots.owned[slots] |= flight.mine[places] & ours

    def _sort_out(self, flight: Flight, replies: list[Any], current: NDArray[np.bool_]) -> None:
        """Settle a flight row by row: something in it was not plainly applied."""
        applied = np.array(
            [
                answer in (commit.APPLIED, commit.DUPLICATE) or self._overtaken(flight, place, answer)
                for place, answer in enumerate(replies)
            ]
        )
        self._store_has(flight, np.flatnonzero(applied & current))
        self._slots.give_up(flight.slots[~applied & current])
        for place, block, row in flight.batch.each() if flight.batch else ():
            answer, rows = replies[place], np.array([row])
            if applied[place] and (current[place] or flight.commits):  # the store has decided
                if flight.refusal is not None:
                    self._pending.refuse(Part(block, rows), flight.refusal)
                    continue
                mine = slice(place, place + 1)
                told = [o[mine] for o in flight.outputs], [s[mine] for s in flight.states]
                self._pending.answer_rows(block, rows, *told, flight.headers[mine])
                continue
            if answer == commit.MISSING:
                answer = self._missing(block, row, int(flight.expected["expire_ms"][place]))
            if isinstance(answer, RecurraError):
                self._pending.refuse(Part(block, rows), answer)
            else:
                self._pending.conflicted(block, rows)

    def _missing(self, block: Block, row: int, expire_ms: int) -> RecurraError | None:
        """The session was there when the operation was run. None: it expired, and the operation may begin it anew."""
        if block.create is Create.ANEW:
            return None
        now_ms = int(self._clock.time() * 1000)
        anew = now_ms >= expire_ms and block.create is not Create.NEVER and not block.afters[row].any()
        return None if anew else gone(expire_ms, now_ms)

    def _overtaken(self, flight: Flight, place: int, answer: Any) -> bool:
        """Whether the header found is of a later flight of ours: after a resend, both had been applied already."""
        if not isinstance(answer, bytes):
            return False
        slot, epoch = flight.slots[place], flight.epochs[place]
        return any(
            answer == later.headers[at].tobytes()
            for later in self._flights
            if later.commits
            for at in np.flatnonzero((later.slots == slot) & (later.epochs == epoch))
        )
