"""Which session is in which slot, and where it stands there. Columns by slot; rows change hands, never shape."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.server.store import record
from recurra.wire.errors import Overloaded

Array = NDArray[Any]

COLD, LOADING, HOT = 0, 1, 2
_EVICT_SHARE: Final = 16  # one slot in so many is freed at once, so that looking for the oldest is rare


class Slots:
    """The sessions in memory. Slot 0 is nobody's: the fresh state, for stateless operations.

    A session keeps its slot while operations of it are queued, or commits in flight. HOT: header and state in the slot
    are what the session's last operation here left, which the store may not have yet, or which another replica may have
    passed since: only a commit tells.

    Attributes:
        headers: (slots,) record.HEADER; zeros for a session that does not exist.
        stored: (slots,) record.HEADER, what the store will have once all commits that were sent are applied.
        durable: (slots,) uint64, the position that the store is known to have, since the last base state.
        bases: (slots,) counts the base states that the session was put to here.
        owned: (slots,) bool, operations may be acknowledged before the store has them.
        dirty_at: (slots,) when the first of these was, in monotonic seconds; infinity where the store has all.
        ttl_ms: (slots,) int64, that the last operation here asked for.
        identities: (slots, 2) uint64, and so name_bytes, (slots,).
        keys: (slots, K) uint8, in the store.
        names: (slots, NAME_BYTES) uint8.
        status: (slots,) COLD, LOADING or HOT.
        ready: (slots,) bool, HOT; what the scheduler asks.
        running: (slots,) bool, a long chunk is being run, and nothing else of this session meanwhile.
        pins: (slots,) operations queued, running or in flight.
        epoch: (slots,) counts how often what is in the slot was given up.
        read_at: (slots,) the engine's sequence number when what is in the slot was asked of the store; 0 once changed.
        uses: (slots,) how often the slot was given to another session: a (slot, uses) pair names a session.
        given: how often any slot was given.
    """

    def __init__(self, count: int, prefix: bytes) -> None:
        """`count` sessions; `prefix`: what their keys start with."""
        count += 1
        self.headers = np.zeros(count, record.HEADER)
        self.stored = np.zeros(count, record.HEADER)
        self._header_words, self._stored_words = record.words(self.headers), record.words(self.stored)
        self.durable = np.zeros(count, np.uint64)
        self.bases = np.zeros(count, np.int64)
        self.owned = np.zeros(count, bool)
        self.dirty_at = np.full(count, np.inf)
        self.ttl_ms = np.zeros(count, np.int64)
        self.identities = np.zeros((count, 2), np.uint64)
        self.name_bytes = np.zeros(count, np.uint16)
        self.keys = np.zeros((count, len(record.key(prefix, bytes(16)))), np.uint8)
        self.names = np.zeros((count, record.NAME_BYTES), np.uint8)
        self.status = np.zeros(count, np.uint8)
        self.ready = np.zeros(count, bool)
        self.running = np.zeros(count, bool)
        self.pins = np.zeros(count, np.int64)
        self.epoch = np.zeros(count, np.int64)
        self.read_at = np.zeros(count, np.int64)
        self.uses = np.zeros(count, np.int64)
        self.given = 0
        self._used = np.zeros(count, np.int64)
        self._tick = 0
        self._prefix = prefix
        self._of: dict[bytes, int] = {}
        self._free = list(range(count - 1, 0, -1))
        self._wanted: list[Array] = []
        self.ready[0], self.status[0] = True, HOT

    def __len__(self) -> int:
        """How many sessions are in slots."""
        return len(self._of)

    def acquire(self, identity: bytes, name: bytes) -> int:
        """The session's slot. Raises Overloaded when all slots are busy."""
        slot = self._of.get(identity)
        if slot is not None:
            self.touch(slot)  # it is about to be used: the next one to come may not get it
            return slot
        if not self._free:
            self._evict()
        slot = self._free.pop()
        self._of[identity] = slot
        self.identities[slot], self.name_bytes[slot] = np.frombuffer(identity, "<u8"), len(name)
        self.keys[slot] = np.frombuffer(record.key(self._prefix, identity), np.uint8)
        self.names[slot] = np.frombuffer(name.ljust(record.NAME_BYTES, b"\0"), np.uint8)
        self.read_at[slot] = 0
        self.uses[slot] += 1
        self.given += 1
        self.touch(slot)
        return slot

    def find(self, identity: bytes) -> int | None:
        """The session's slot, if it has one."""
        return self._of.get(identity)

    def identity(self, slot: int) -> bytes:
        name: bytes = self.identities[slot].tobytes()
        return name

    def pin(self, slots: Array) -> None:
        """Operations of these sessions (each once) have come; to be unpinned one by one."""
        self.pins[slots] += 1
        self.touch(slots)
        if not self.ready[slots].all():
            self._wanted.append(slots)

    def unpin(self, slots: Array) -> None:
        self.pins[slots] -= 1

    def give_up(self, slots: Array) -> None:
        """What is in these slots is not to be used any more."""
        self.status[slots], self.ready[slots] = COLD, False
        self.owned[slots], self.dirty_at[slots] = False, np.inf
        self.epoch[slots] += 1
        self._wanted.append(slots)

    def to_load(self) -> Array:
        """The slots that operations wait for and nobody loads yet; they are LOADING from now on."""
        if not self._wanted:
            return np.empty(0, np.intp)
        slots = np.unique(np.concatenate(self._wanted))
        self._wanted.clear()
        cold: Array = slots[(self.status[slots] == COLD) & (self.pins[slots] > 0)]
        self.status[cold] = LOADING
        return cold

    def install(self, slots: Array, headers: Array, asked: int) -> None:
        """The store was read: the sessions stand at `headers`, (N,) HEADER. `asked`: see read_at."""
        self.stands(slots, headers)
        self.sent(slots, headers)
        self.read_at[slots] = asked
        self.durable[slots] = headers["position"]
        self.status[slots], self.ready[slots] = HOT, ~self.running[slots]

    def heads(self, slots: Array) -> Array:
        """(N,) HEADER, copied: where these sessions stand."""
        return record.headers(self._header_words.take(slots, 0))

    def expected(self, slots: Array) -> Array:
        """(N,) HEADER, copied: what their records will hold once all that was sent is applied."""
        return record.headers(self._stored_words.take(slots, 0))

    def stands(self, slots: Array, headers: Array) -> None:
        """These sessions stand at `headers`, (N,) HEADER, now."""
        self._header_words[slots], self.read_at[slots] = record.words(headers), 0

    def sent(self, slots: Array, headers: Array) -> None:
        """The store has `headers`, (N,) HEADER, of these sessions, or will have."""
        self._stored_words[slots] = record.words(headers)

    def rebase(self, slots: Array) -> None:
        """These sessions start from another base state, and their positions from 0: the store has none of it yet."""
        self.durable[slots] = 0
        self.bases[slots] += 1

    def run_long(self, slots: Array, *, running: bool) -> None:
        """A long chunk of these sessions begins, or ends."""
        slots = slots[slots > 0]
        self.running[slots] = running
        self.ready[slots] = (self.status[slots] == HOT) & ~self.running[slots]

    def touch(self, slots: Array | int) -> None:
        """These sessions are in use: others lose their slots first."""
        self._tick += 1
        self._used[slots] = self._tick

    def _evict(self) -> None:
        clean = self.dirty_at[1:] == np.inf
        idle = np.flatnonzero((self.pins[1:] == 0) & (self.status[1:] != LOADING) & clean) + 1
        if not len(idle):
            raise Overloaded(
                "every slot is in use by waiting operations or checkpoints; retry later or raise --slots",
                retry_after=0.1,
            )
        oldest = idle[np.argsort(self._used[idle])[: max(1, len(self.status) // _EVICT_SHARE)]]
        self.give_up(oldest)
        for slot in oldest.tolist():
            del self._of[self.identity(slot)]
            self._free.append(slot)
