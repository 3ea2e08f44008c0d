"""Commits in flight: a batch's new records on their way to the store, and what their answers mean."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.models import Model
from recurra.server.engine import reply
from recurra.server.engine.batch import Batch
from recurra.server.engine.flight import Flight, Parcel
from recurra.server.engine.heads import advanced
from recurra.server.engine.judge import gone
from recurra.server.engine.line import Line
from recurra.server.engine.operation import Block, Create
from recurra.server.engine.ownership import Ownership
from recurra.server.engine.pending import Pending
from recurra.server.engine.scheduler import Part
from recurra.server.engine.seams import Clock, States, Store
from recurra.server.engine.slots import Slots
from recurra.server.store import commit, record
from recurra.wire.errors import RecurraError

Array = NDArray[Any]

_MAX_FLIGHTS: Final = 2  # sent, and unsent: one more batch is run meanwhile
_UNSENT: Final = b""  # in place of an answer
TOMBSTONE_MS: Final = 3_600_000  # an ended session answers CLOSED for so long


class Commits:
    """Sends commits in the order of the runs and settles them in that order, several in flight.

    A session's next operation may be committed before this one is answered: its compare-and-set expects this one's
    header, so if this one fails, that one fails too, and both are decided anew.

    Attributes:
        line: of these, what is to be sent yet.
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
        self._slots, self._clock = slots, clock
        self._ownership, self._pending, self._landed = ownership, pending, landed
        self._layout, self._reply_tag = np.frombuffer(model.layout, "<u8"), reply.tag(model.signature)
        self._flights: deque[Flight] = deque()
        self.line = Line(slots, store, pending.wake)
        self._came, self._gone = asyncio.Event(), asyncio.Event()

    @property
    def behind(self) -> bool:
        """Whether so much is on its way that what is committed may wait: the next batches grow meanwhile."""
        unsent = len(self.line)
        return max(unsent, len(self._flights) - unsent) >= _MAX_FLIGHTS

    def prepare(
        self, batch: Batch, rebased: Array, new: States, outputs: list[Array], states: list[Array]
    ) -> NDArray[np.bool_]:
        """Let a batch's sessions stand where its operations bring them; their records are in line.

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
        self.line.send()
        return flight

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
        self.line.send()

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
                flight.landed = True
            self._flights.clear()
            self.line.dissolve()
            self._gone.set()

    async def _settle_first(self) -> None:
        flight = self._flights[0]
        await self.line.until_sent(flight)
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
            self.line.join(flight)
        self._came.set()
        return flight

    def _store_has(self, flight: Flight, places: slice | Array) -> None:
        """Note what these sessions' slots may rely on now."""
        if flight.mine is not None:
            slots = flight.slots[places]
            same = self._slots.bases[slots] == flight.bases[places]  # positions of another base tell nothing
            self._slots.durable[slots[same]] = flight.headers["position"][places][same]
            if flight.mine.any():  # but not those that were released since: that is in line, or on its way
                ours = self._ownership.ours(self._slots.heads(slots))
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
        failed = flight.slots[~applied & current]
        self._slots.give_up(failed)
        self.line.fail(failed)
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
