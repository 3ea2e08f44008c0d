"""Commits in flight: a batch's new records on their way to the store, and what their answers mean."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
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
from recurra.server.engine.seams import Clock, Store
from recurra.server.engine.slots import Slots
from recurra.server.store import commit, record
from recurra.wire.errors import RecurraError

Array = NDArray[Any]

TOMBSTONE_MS: Final = 3_600_000  # an ended session answers CLOSED for so long


@dataclass(eq=False, slots=True, kw_only=True)
class Flight:
    """New records on their way, until the store has answered.

    Attributes:
        slots, epochs: (N,), whose.
        bases: (N,), the slots' when this was sent.
        expected, headers: (N,) HEADER, where the sessions stood before and stand after.
        mine: (N,) bool, which of them this replica owns once this is applied.
        answer: the store's; None for what only waits behind others.
        batch: the operations that wait for it; None at a checkpoint.
        outputs, states: (N, ...), what their clients get.
        refusal: what they get instead, of an operation that was applied before.
    """

    slots: Array
    epochs: Array
    bases: Array
    expected: Array
    headers: Array
    answer: Awaitable[list[Any]] | None
    started: float
    mine: NDArray[np.bool_] | None = None
    batch: Batch | None = None
    outputs: list[Array] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)
    refusal: RecurraError | None = None
    landed: bool = False

    @property
    def commits(self) -> bool:
        """Whether it changes records, or only waits behind others that do."""
        return self.answer is not None


class Draft(NamedTuple):
    """A batch's new headers, (N,) HEADER, and which sessions are this replica's, (N,) bool, once they are applied."""

    batch: Batch
    headers: Array
    mine: NDArray[np.bool_]
    now_ms: int


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
        self._came, self._gone = asyncio.Event(), asyncio.Event()

    def __len__(self) -> int:
        return len(self._flights)

    def prepare(self, batch: Batch, rebased: Array) -> Draft:
        """Let a batch's sessions stand where its operations bring them: `send` must follow before anything else does.

        `rebased`: (N,) bool, whose position starts from 0.
        """
        slots, closes, now_ms = batch.slots, batch.head.closes, int(self._clock.time() * 1000)
        before = self._slots.heads(slots)
        new = advanced(before, batch, rebased, now_ms=now_ms)
        self._slots.ttl_ms[slots] = TOMBSTONE_MS if closes else batch.ttl_ms
        new["identity"], new["name_bytes"] = self._slots.identities[slots], self._slots.name_bytes[slots]
        new["layout"], new["reply_tag"] = self._layout, self._reply_tag
        self._slots.rebase(slots[rebased | batch.anew | (before["kind"] != record.LIVE)])
        mine = (self._slots.owned[slots] | self._ownership.claims(batch, before, now_ms)) & (not closes)
        self._slots.stands(slots, new, sent=False)
        return Draft(batch, new, mine, now_ms)

    def send(self, draft: Draft, outputs: list[Array], states: list[Array], state: Array) -> None:
        """Send a batch's new records.

        Args:
            outputs, states: (N, ...), what the clients get and the record keeps.
            state: (N, state_bytes) uint8, the new state.
        """
        batch, new = draft.batch, draft.headers
        kept = reply.pack(outputs + states, rows=len(batch))
        if not kept.shape[1] and outputs:
            new["flags"] |= record.REPLY_DROPPED
        if batch.head.closes:
            state = state[:, :0]
        told = {"batch": batch, "epochs": batch.epochs, "outputs": outputs, "states": states}
        self._send(batch.slots, new, state, kept, draft.mine, now_ms=draft.now_ms, **told)

    def checkpoint(self, slots: Array, state: Array, kept: Array, *, mine: NDArray[np.bool_]) -> Flight:
        """Send where these sessions stand; nobody waits for it.

        Args:
            state: (N, state_bytes) uint8.
            kept: (N, R) uint8, the packed replies of their last operations.
            mine: (N,) bool, which of them this replica still owns then.
        """
        headers, now_ms = self._slots.heads(slots), int(self._clock.time() * 1000)
        return self._send(slots, headers, state, kept, mine, now_ms=now_ms, epochs=self._slots.epoch[slots])

    def _send(
        self, slots: Array, new: Array, state: Array, kept: Array, mine: NDArray[np.bool_], *, now_ms: int, **more: Any
    ) -> Flight:
        ttl_ms, expected = self._slots.ttl_ms[slots], self._slots.expected(slots)
        new["commit"] = np.frombuffer(os.urandom(16 * len(slots)), "<u8").reshape(-1, 2)
        new["expire_ms"] = now_ms + ttl_ms
        self._ownership.mark(new, mine, now_ms)
        records = record.pack(new, self._slots.names[slots], state, kept)
        self._slots.stands(slots, new, sent=True)
        self._slots.owned[slots] &= mine
        batch = more.get("batch")
        replicated = batch is not None and batch.head.replicated
        answer = self._store.commit(self._slots.keys[slots], expected, records, ttl_ms, replicated=replicated)
        return self._fly(slots=slots, expected=expected, headers=new, answer=answer, mine=mine, **more)

    def hold(self, batch: Batch, outputs: list[Array], states: list[Array], rebased: Array) -> None:
        """Keep a batch that changes nothing behind the commits that it rests on."""
        there = self._slots.heads(batch.slots)
        headers, counts = self._slots.heads(batch.slots), (there["kind"] == record.LIVE) & ~rebased
        headers["position"] = there["position"] * counts + np.uint64(batch.head.timesteps)
        headers["flags"] = 0
        columns = {"slots": batch.slots, "epochs": batch.epochs, "expected": there, "headers": headers}
        self._fly(answer=None, batch=batch, outputs=outputs, states=states, **columns)

    def confirm(self, batch: Batch, outputs: list[Array], states: list[Array], refusal: RecurraError | None) -> None:
        """Answer a duplicate behind the commits that are in flight: what it repeats may be among them.

        A replicated one is written again, with nothing new, and waits for the store's replicas.
        """
        slots, there, answer = batch.slots, self._slots.heads(batch.slots), None
        if batch.head.replicated:
            nowhere = record.headers(np.full_like(record.words(there), np.iinfo(np.uint64).max))
            heads = there.view(np.uint8).reshape(len(slots), -1)
            answer = self._store.commit(self._slots.keys[slots], nowhere, heads, batch.ttl_ms, replicated=True)
        told = {"batch": batch, "outputs": outputs, "states": states, "refusal": refusal}
        self._fly(slots=slots, epochs=self._slots.epoch[slots], expected=there, headers=there, answer=answer, **told)

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
            self._gone.set()

    async def _settle_first(self) -> None:
        flight = self._flights[0]
        try:
            replies = await flight.answer if flight.answer else [commit.APPLIED] * len(flight.slots)
        except RecurraError as error:
            replies = [error] * len(flight.slots)
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

    def _fly(self, **columns: Any) -> Flight:
        bases = self._slots.bases[columns["slots"]]
        flight = Flight(started=self._clock.monotonic(), bases=bases, **columns)
        self._flights.append(flight)
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
