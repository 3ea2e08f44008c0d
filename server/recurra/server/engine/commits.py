"""Commits in flight: a batch's new records on their way to the store, and what their answers mean."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine import reply
from recurra.server.engine.batch import Batch
from recurra.server.engine.judge import gone
from recurra.server.engine.operation import Block, Create, Kind, Rows
from recurra.server.engine.seams import Clock, Store
from recurra.server.engine.slots import Slots
from recurra.server.store import commit, record
from recurra.wire.errors import RecurraError

Array = NDArray[Any]

TOMBSTONE_MS: Final = 3_600_000  # an ended session answers CLOSED for so long


@dataclass(eq=False, slots=True)
class Flight:
    """A batch that was run, until the store has answered.

    Attributes:
        outputs, states: (N, ...), what clients get.
        expected, headers: (N,) HEADER, where the sessions stood before and stand after.
    """

    batch: Batch
    outputs: list[Array]
    states: list[Array]
    expected: Array
    headers: Array
    answer: asyncio.Future[list[Any]]
    started: float


class Commits:
    """Sends commits in the order of the runs and settles them in that order, several in flight.

    A session's next operation may be committed before this one is answered: its compare-and-set expects this one's
    header, so if this one fails, that one fails too, and both are decided anew.
    """

    def __init__(
        self,
        slots: Slots,
        store: Store,
        clock: Clock,
        *,
        layout: Array,
        reply_tag: int,
        redo: Callable[[Block, Rows], None],
        settled: Callable[[Block, Rows], None],
        landed: Callable[[Flight], None],
    ) -> None:
        """`redo`: puts rows back to be decided anew. `settled`: told of rows that are done, `landed` of flights."""
        self._slots, self._store, self._clock = slots, store, clock
        self._layout, self._reply_tag = layout, reply_tag
        self._redo, self._settled, self._landed = redo, settled, landed
        self._flights: deque[Flight] = deque()
        self._came = asyncio.Event()

    def __len__(self) -> int:
        return len(self._flights)

    def send(self, batch: Batch, outputs: list[Array], states: list[Array], state: Array, rebased: Array) -> None:
        """Send a batch's new records.

        Args:
            outputs, states: (N, ...), what the clients get and the record keeps.
            state: (N, state_bytes) uint8, the new state.
            rebased: (N,) bool, whose position starts from 0.
        """
        slots, kind = batch.slots, batch.head.kind
        expected = self._slots.headers[slots]
        new = expected.copy()
        created = expected["kind"] != record.LIVE
        now_ms = int(self._clock.time() * 1000)
        ttl_ms = np.full(len(batch), TOMBSTONE_MS) if kind is Kind.END else batch.ttl_ms
        new["format"], new["operation"] = record.FORMAT, kind
        new["kind"] = record.CLOSED if kind is Kind.END else record.LIVE
        new["identity"], new["name_bytes"] = self._slots.identities[slots], self._slots.name_bytes[slots]
        new["layout"], new["reply_tag"] = self._layout, self._reply_tag
        new["recent"][:, 1:], new["recent"][:, 0] = expected["recent"][:, :-1], expected["id"]
        new["id"], new["digest"] = batch.ids, batch.digests()
        new["incarnation"] = np.where(created[:, None], batch.ids, expected["incarnation"])
        new["commit"] = np.frombuffer(os.urandom(16 * len(batch)), "<u8").reshape(-1, 2)
        new["position"] = np.where(created | rebased, 0, expected["position"]) + np.uint64(batch.head.timesteps)
        new["update_ms"], new["expire_ms"] = now_ms, now_ms + ttl_ms
        kept = reply.pack(outputs + states)
        new["flags"] = created * record.CREATED + (not kept.shape[1] and bool(outputs)) * record.REPLY_DROPPED
        if kind is Kind.END:
            state = state[:, :0]
        if len(kept) != len(batch):
            kept = np.empty((len(batch), 0), np.uint8)
        records = record.pack(new, self._slots.names[slots], state, kept)
        self._slots.headers[slots] = new
        self._slots.read_at[slots] = 0
        sending = self._store.commit(self._slots.keys[slots], expected, records, ttl_ms)
        answer = asyncio.ensure_future(sending)
        self._fly(Flight(batch, outputs, states, expected, new, answer, self._clock.monotonic()))

    def hold(self, batch: Batch, outputs: list[Array], states: list[Array], rebased: Array) -> None:
        """Keep a batch that changes nothing behind the commits that it rests on."""
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        answer.set_result([commit.APPLIED] * len(batch))
        there = self._slots.headers[batch.slots]
        headers, counts = there.copy(), (there["kind"] == record.LIVE) & ~rebased
        headers["position"] = there["position"] * counts + np.uint64(batch.head.timesteps)
        headers["flags"] = 0
        self._fly(Flight(batch, outputs, states, there, headers, answer, self._clock.monotonic()))

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
                flight.answer.cancel()

    async def _settle_first(self) -> None:
        flight = self._flights[0]
        try:
            replies = await flight.answer
        except RecurraError as error:
            replies = [error] * len(flight.batch)
        self._flights.popleft()
        if replies.count(commit.APPLIED) == len(replies) and self._current(flight).all():
            at = 0
            for block, rows in flight.batch.parts:
                self._acknowledge(flight, block, rows, slice(at, at + len(rows)))
                at += len(rows)
        else:
            self._sort_out(flight, replies)
        self._landed(flight)

    def _fly(self, flight: Flight) -> None:
        self._flights.append(flight)
        self._came.set()

    def _current(self, flight: Flight) -> NDArray[np.bool_]:
        if flight.batch.head.commit:
            return np.ones(1, bool)  # the store has decided
        same: NDArray[np.bool_] = self._slots.epoch[flight.batch.slots] == flight.batch.epochs
        return same

    def _acknowledge(self, flight: Flight, block: Block, rows: Rows, places: slice) -> None:
        outputs, states = [o[places] for o in flight.outputs], [s[places] for s in flight.states]
        block.answer(rows, outputs, states, flight.headers[places])
        self._settled(block, rows)

    def _sort_out(self, flight: Flight, replies: list[Any]) -> None:
        """Settle a flight row by row: something in it was not plainly applied."""
        current = np.broadcast_to(self._current(flight), len(replies))
        for place, block, row in flight.batch.each():
            answer, slot = replies[place], block.slots[row : row + 1]
            applied = answer in (commit.APPLIED, commit.DUPLICATE) or self._overtaken(flight, place, answer)
            if applied and current[place]:
                self._acknowledge(flight, block, np.array([row]), slice(place, place + 1))
                continue
            if self._slots.epoch[slot[0]] == flight.batch.epochs[place]:
                self._slots.give_up(slot)
            if answer == commit.MISSING:
                answer = self._gone(block, row, int(flight.expected["expire_ms"][place]))
            if isinstance(answer, RecurraError):
                block.refuse(row, answer)
                self._settled(block, np.array([row]))
            else:
                self._redo(block, np.array([row]))

    def _gone(self, block: Block, row: int, expire_ms: int) -> RecurraError | None:
        """The session was there when the operation was run. None: it expired, and the operation may begin it anew."""
        now_ms = int(self._clock.time() * 1000)
        anew = now_ms >= expire_ms and block.create is not Create.NEVER and not block.afters[row].any()
        return None if anew else gone(expire_ms, now_ms)

    def _overtaken(self, flight: Flight, place: int, answer: Any) -> bool:
        """Whether the header found is of a later flight of ours: after a resend, both had been applied already."""
        if not isinstance(answer, bytes):
            return False
        slot, epoch = flight.batch.slots[place], flight.batch.epochs[place]
        return any(
            answer == later.headers[at].tobytes()
            for later in self._flights
            if later.batch.head.commit
            for at in np.flatnonzero((later.batch.slots == slot) & (later.batch.epochs == epoch))
        )
