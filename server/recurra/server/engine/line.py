"""Records that are to be sent yet: in the order of their runs, each once its states are on the host."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine.flight import Flight, Parcel
from recurra.server.engine.seams import Store
from recurra.server.engine.slots import Slots
from recurra.server.store import record
from recurra.server.telemetry import Log

Array = NDArray[Any]

_log = Log(__name__)

_NOWHERE: Final = np.uint64(np.iinfo(np.uint64).max)  # in all words of a header: no record stands there


class Line:
    """Flights that have a parcel. Nobody else gets their slots before it is sent."""

    def __init__(self, slots: Slots, store: Store, wake: asyncio.Event) -> None:
        """`wake`: set when some were sent."""
        self._slots, self._store, self._wake = slots, store, wake
        self._flights: deque[Flight] = deque()
        self._coming: asyncio.Future[Any] | None = None  # what the first one waits for
        self._went = asyncio.Event()

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, flight: Flight) -> None:
        self._flights.append(flight)
        self._slots.pins[flight.slots] += 1

    def send(self) -> None:
        """Send them, oldest first, as far as their states are on the host: the rest follows when they are."""
        while self._flights:
            flight = self._flights[0]
            assert flight.parcel is not None
            coming = flight.parcel.coming
            if coming is not None and not coming.done():
                if coming is not self._coming:
                    coming.add_done_callback(lambda _: self.send())
                    self._coming = coming
                return
            self._flights.popleft()
            try:
                self._send(flight, flight.parcel)
            except Exception as error:  # noqa: BLE001 # such as MemoryError: the slots are ahead of the store
                _log.exception("commit.failed", sessions=len(flight.slots), error=error)
                self._slots.give_up(flight.slots[self._slots.epoch[flight.slots] == flight.epochs])
                flight.rests[:] = False
                self.fail(flight.slots)
            flight.parcel = None
            self._slots.unpin(flight.slots)
            self._went.set()
            self._wake.set()
        self._coming = None  # and with it the states of a batch

    def fail(self, slots: Array) -> None:
        """What these sessions stood at never was: what rests on it is not sent."""
        for flight in self._flights:
            flight.rests &= ~np.isin(flight.slots, slots)

    async def until_clear(self, slots: Array) -> None:
        """Wait until all that is here of these sessions is sent: what is read then is no older."""
        theirs = (flight for flight in reversed(self._flights) if np.isin(slots, flight.slots).any())
        await self.until_sent(next(theirs, None))

    async def until_sent(self, flight: Flight | None) -> None:
        """Wait until this one is sent."""
        while flight is not None and flight.parcel is not None:
            self._went.clear()
            await self._went.wait()

    def dissolve(self) -> None:
        """Send none of them: nobody will ask what became of them."""
        for flight in self._flights:
            flight.parcel = None
        self._flights.clear()
        self._went.set()

    def _send(self, flight: Flight, parcel: Parcel) -> None:
        slots, state = flight.slots, np.empty((len(flight.slots), 0), np.uint8)
        rests, expected = flight.rests, self._slots.expected(slots)
        if not rests.all():
            record.words(expected)[~rests] = _NOWHERE
        if parcel.records is None:
            records = expected.view(np.uint8).reshape(len(slots), -1)
            expected = record.headers(np.full_like(record.words(expected), _NOWHERE))
        else:
            records, flight.expected = parcel.records(parcel.new.to_bytes() if parcel.new else state), expected
            still = slice(None) if rests.all() else rests
            self._slots.sent(slots[still], flight.headers[still])
        replicated = flight.batch is not None and flight.batch.head.replicated
        flight.answer = self._store.commit(parcel.keys, expected, records, parcel.ttl_ms, replicated=replicated)
