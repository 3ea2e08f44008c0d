"""What must be true: of every reply, of every error, and of the store.

An output tells all inputs that led to it, so the oracle only needs to know where a session may stand. After an
acknowledgement that is one place; an operation of unknown fate leaves two, until the next reply tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from recurra.server.engine.operation import Kind
from recurra.server.store import record
from recurra.wire.errors import (
    AlreadyApplied,
    Contended,
    DataLoss,
    DeadlineExceeded,
    Diverged,
    Draining,
    NotReplicated,
    Overloaded,
    Owned,
    RecurraError,
    RunFailed,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionNotFound,
    StateReset,
    StoreFull,
    StoreUnavailable,
    Unreachable,
    WrongIncarnation,
)
from tests.simulation import chain

MOST_PLACES = 300
Place = tuple[int, int]
"""A state and its position."""
START: Place = (chain.FRESH, 0)
_WEATHER = (
    Contended,
    DeadlineExceeded,
    Draining,
    NotReplicated,
    Overloaded,
    Owned,
    StoreFull,
    StoreUnavailable,
    Unreachable,
)
_LOSSES = (DataLoss, Diverged, SessionNotFound, StateReset, WrongIncarnation, SessionExists, SessionClosed)


class Violation(Exception):
    """Something that must never be was seen."""


class Unexplained(Violation):
    """An error that nothing explains."""


class Idle(Violation):
    """All is well, and yet nothing is acknowledged."""


class Vague(Exception):
    """Too much is unknown for any more to be told apart."""


@dataclass
class Stored:
    """What the store ever held.

    Attributes:
        held: by session, every place that a primary applied.
        lost: how many writes were lost, up to now.
        copied: by session, every place that the store's replica had.
    """

    lost: Callable[[], int]
    held: dict[str, set[Place]] = field(default_factory=dict)
    copied: dict[str, set[Place]] = field(default_factory=dict)

    def written(self, there: bytes | None, new: bytes) -> None:
        """A record takes the place of another: it goes on from it, and only a create begins where nothing is."""
        found = unpacked(new)
        self._note(self.held, found)
        head = found.header[0]
        if there is None:
            if (head["id"] != head["incarnation"]).any():
                raise Violation(f"created by what does not create: '{found.name}' at {_place(found)}")
            return
        before = unpacked(there)
        if before.header["kind"][0] == record.CLOSED:
            return
        same = (before.header["incarnation"] == head["incarnation"]).all()
        steps = int(head["position"]) - int(before.header["position"][0])
        rebased = head["operation"] != Kind.PREDICT
        if not same or not (rebased or chain.before(_place(found)[0], steps) == _place(before)[0]):
            was, now = chain.told(_place(before)[0]), chain.told(_place(found)[0])
            raise Violation(f"two histories of '{found.name}': [{was}] is followed by [{now}]")

    def replicated(self, data: bytes) -> None:
        self._note(self.copied, unpacked(data))

    @staticmethod
    def _note(places: dict[str, set[Place]], found: record.Record) -> None:
        places.setdefault(found.name, set()).add(_place(found))


def unpacked(data: bytes) -> record.Record:
    identity = np.frombuffer(data[: record.HEADER.itemsize], record.HEADER)["identity"][0].tobytes()
    return record.unpack(data, identity)


def _place(found: record.Record) -> Place:
    if found.header["kind"][0] == record.CLOSED:
        return START
    return int.from_bytes(found.state, "little", signed=True), int(found.header["position"][0])


class Truth:
    """One session that has one writer at a time: where it may stand.

    Attributes:
        at: the places where it may stand before the operation that is asked now.
        trail: every place where it may have stood since the one that the store was last told to hold.
    """

    def __init__(self, name: str, stored: Stored, *, mortal: bool, brittle: bool, doubled: bool) -> None:
        """`mortal`: it may expire. `brittle`: runs may fail. `doubled`: calls may come twice."""
        self.name = name
        self._stored, self._mortal, self._brittle, self._doubled = stored, mortal, brittle, doubled
        self.at: set[Place] = {START}
        self.trail: list[Place] = [START]
        self._open: set[Place] = set()  # where the operation of unknown fate would have brought it
        self._asked: object = None
        self._naive = True
        self.doubtful = False  # an earlier handle, or a failed run, left what the store did not have, or may get yet
        self.last: Place = START  # that was acknowledged
        self.acknowledged = 0
        self._told = False  # that the store lost it

    def asks(self, asked: object) -> None:
        """An operation is asked; the same as before after a failure is a retry of it."""
        if asked != self._asked:
            self.at |= self._open
            self._open = set()
        self._asked = asked

    def places(self) -> set[Place]:
        """Where it may stand before the operation; whoever knows nothing of it cannot know that the store lost it."""
        if self._naive and (self._stored.lost() or self._mortal):
            return self.at | {START} | self._stored.held.get(self.name, set())
        return self.at

    def _after(self, xs: Sequence[int]) -> dict[Place, list[int]]:
        """By the place where it would stand then: the outputs."""
        after = {}
        for state, position in self.places():
            outputs = chain.follow(state, xs)
            after[outputs[-1], position + len(xs)] = outputs
        return after

    def predicted(self, xs: Sequence[int], outputs: Sequence[int], position: int | None, durable: int | None) -> None:
        """A predict was answered. `durable`: the position that the store has, None if that is not told."""
        after = self._after(xs)
        place = next((place for place, right in after.items() if right == list(outputs)), None)
        if place is None:
            right = " or ".join(f"[{chain.told(state)}]" for state, _ in sorted(self.places()))
            wrong = chain.told(outputs[-1])
            raise Violation(f"wrong reply: '{self.name}' was asked {list(xs)} at {right}, and answered [{wrong}]")
        if position is not None and position != place[1]:
            raise Violation(f"wrong position: '{self.name}' stands at {place[1]}, told {position}")
        self._reached(place, place[1] if durable is None else durable)

    def rebased(self, state: int, position: int | None, *, ends: bool = False) -> None:
        """A reset, set-state or end was answered; the session stands at `state`, position 0."""
        if position and not ends:
            raise Violation(f"wrong position: '{self.name}' stands at 0, told {position}")
        self._reached((state, 0), 0)

    def _reached(self, place: Place, durable: int) -> None:
        self.acknowledged += 1
        self.at, self._open, self._asked, self.last, self._naive = {place}, set(), None, place, False
        self._told = False
        self.trail.append(place)
        self.secured(durable)

    def secured(self, durable: int) -> None:
        """The store is told to have the place at this position."""
        if durable > self.last[1]:
            raise Violation(f"durable beyond the end: '{self.name}' at {self.last[1]}, told {durable}")
        at = next((at for at in reversed(range(len(self.trail))) if self.trail[at][1] == durable), None)
        if at is not None:
            self._held(at)

    @property
    def may_be_lost(self) -> bool:
        """Whether anything has happened that explains a loss."""
        return self._stored.lost() > 0 or self.doubtful or self._mortal

    def told_lost(self) -> None:
        """An error told that the store may have lost what was acknowledged."""
        self._told = True

    def closed(self) -> None:
        """The store is told to have all that was acknowledged to this handle."""
        if not (self._naive or self._told):
            self._held(max(at for at, place in enumerate(self.trail) if place == self.last))

    def _held(self, at: int) -> None:
        place = self.trail[at]
        # Or something that goes on from it: one checkpoint writes what several operations did.
        held = self._stored.held.get(self.name, ())
        covered = any(chain.before(state, position - place[1]) == place[0] for state, position in held)
        if place != START and not covered:
            raise Violation(f"told to be durable, but the store never had it: '{self.name}' at {place}")
        self.trail = self.trail[at:]

    def replicated(self) -> None:
        """What was acknowledged is told to be with the store's replica too."""
        if self.last != START and self.last not in self._stored.copied.get(self.name, ()):
            raise Violation(f"told to be replicated, but no replica had it: '{self.name}' at {self.last}")

    def failed(
        self,
        error: BaseException,
        *,
        xs: Sequence[int] = (),
        lines: Sequence[Sequence[int]] = (),
        rebases: int | None = None,
    ) -> None:
        """An operation ended with an error: it may be applied, or not; of several `lines`, the first ones."""
        self._allowed(error)
        if rebases is not None:
            self._open = {(rebases, 0)}
        else:
            lines = lines or [xs]
            chunks = [[x for line in lines[: at + 1] for x in line] for at in range(len(lines))]
            self._open = {place for chunk in chunks for place in self._after(chunk)}
        if len(self.at | self._open) > MOST_PLACES:
            raise Vague(f"'{self.name}' may stand anywhere")
        if isinstance(error, AlreadyApplied):
            self.at, self._open, self._asked = self._open, set(), None
        self.trail += sorted(self.at | self._open)

    def seen(self, state: int) -> None:
        """The store was asked for the state."""
        if self._stored.lost() or self._mortal:
            return
        if state not in {place[0] for place in (*self.at, *self._open, *self.trail)}:
            raise Violation(f"the store has {state} of '{self.name}', which stood at {self.at}")

    def forgotten(self) -> None:
        """The handle knows nothing any more: it continues what it meets."""
        self.doubtful, self._naive = self.doubtful or bool(self._open) or len(self.trail) > 1, True
        self.at = {*self.at, *self._open, *self.trail}
        self._open, self._asked = set(), None
        self.trail = sorted(self.at)

    def _allowed(self, error: BaseException) -> None:
        if isinstance(error, (*_WEATHER, AlreadyApplied, asyncio.CancelledError)):
            return
        if isinstance(error, RunFailed) and self._brittle:
            self.doubtful |= self._doubled  # the other copy of the call may not have failed
            return
        if isinstance(error, SessionExpired) and self._mortal:
            return
        if isinstance(error, SessionNotFound | SessionClosed) and START in self.at | self._open:
            return
        if isinstance(error, _LOSSES) and self.may_be_lost:
            return
        if isinstance(error, RecurraError):
            raise Unexplained(f"an error without a reason: '{self.name}': {error.reason}: {error}")
        raise error

    def ends_at(self, data: bytes | None) -> None:
        """At the end, with all secured: the store holds the place, or, where a loss was told, an earlier one."""
        found = START if data is None else _place(unpacked(data))
        earlier = {START, *self._stored.held.get(self.name, ())} if self._told and self.may_be_lost else set()
        if found not in self.at | self._open | earlier:
            raise Violation(f"the store ends at {found}, '{self.name}' at {self.at | self._open}")


class Shared:
    """One session that several write: every reply is a history in which each input has its place, once."""

    def __init__(self, name: str, stored: Stored, *, mortal: bool) -> None:
        """`mortal`: it may expire."""
        self.name, self._stored, self._mortal = name, stored, mortal
        self.asked: set[int] = set()
        self.last = chain.FRESH  # that was acknowledged to anybody

    def asks(self, xs: Sequence[int]) -> int:
        """What is acknowledged by now, which the answer must rest on."""
        self.asked.update(xs)
        return self.last

    def predicted(self, xs: Sequence[int], outputs: Sequence[int], rests_on: int) -> None:
        """A predict was answered; see `asks`."""
        state = int(outputs[-1])
        base, history = chain.history(state)
        wrong = base != chain.FRESH or len(set(history)) < len(history) or not self.asked.issuperset(history)
        if wrong or history[-len(xs) :] != list(xs):
            raise Violation(f"wrong reply: '{self.name}' was asked {list(xs)}, and answered [{chain.told(state)}]")
        if rests_on not in chain.states(state) and not (self._stored.lost() or self._mortal):
            raise Violation(f"lost: '{self.name}' had [{chain.told(rests_on)}], and answered [{chain.told(state)}]")
        self.last = state
