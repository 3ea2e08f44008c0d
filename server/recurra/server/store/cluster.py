"""The sessions' records in a cluster: a pipe to each primary, and what to do when it says that it is not the one.

A session goes by its key's hash slot to a primary's pipe, which keeps its order. What bounces (MOVED, ASK, CLUSTERDOWN,
a broken connection) is kept, and so is what comes after it in the same hash slot. Then there is a round: the cluster is
asked who has what, nothing new is sent until what is in flight has landed, and all that was kept goes out again in its
old order. A command may be sent twice: a commit is a compare-and-set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from hiredis import ReplyError
from numpy.typing import NDArray

from recurra.server.store import commit
from recurra.server.store.address import Nodes
from recurra.server.store.pipe import ConnectionLost, packed
from recurra.server.store.primary import Found, pinged, scanned
from recurra.server.store.replication import if_replicated, wait
from recurra.server.store.routes import HASH_SLOTS, NOBODY, Address, Routes, hash_slots
from recurra.wire.errors import StoreUnavailable

Array = NDArray[Any]
Rows = NDArray[np.intp]
_T = TypeVar("_T")

_NOT_HERE: Final = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")
_STILL_SECONDS: Final = 0.2  # that a round waits for what is in flight, before it breaks the connections
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25  # seconds between rounds
_NODES: Final = 1_024  # most primaries that a scan's cursor can tell apart
_ASKING: Final = packed("ASKING")
_NONE_YET: Final = object()


@dataclass(eq=False, slots=True, kw_only=True)
class _Request:
    """A command for each of N sessions, and their outcomes so far.

    Attributes:
        number: in the order in which they came.
        wires: (N, bytes) uint8.
        again: the wires of some rows, one command each, for another try.
        staged: a row is two commands at first.
        slots: (N,), the hash slots.
        replicas: how many must have what is written.
    """

    number: int
    wires: Array
    again: Callable[[Rows], Array]
    staged: bool = False
    slots: Rows
    replicas: int = 0
    outcomes: list[Any] = field(init=False)
    left: int = field(init=False)
    answer: asyncio.Future[list[Any]] = field(init=False)
    timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.left = len(self.slots)
        self.outcomes = [_NONE_YET] * self.left
        self.answer = asyncio.get_running_loop().create_future()

    def settle(self, rows: list[int], outcomes: list[Any]) -> None:
        for row, outcome in zip(rows, outcomes, strict=True):
            self.outcomes[row] = outcome
        self.left -= len(rows)
        if not self.left and not self.answer.done():
            self.answer.set_result(self.outcomes)
            if self.timer is not None:
                self.timer.cancel()


@dataclass(frozen=True, slots=True)
class _Kept:
    """Rows that wait for the next round. `ask`: the node that an ASK named for them."""

    request: _Request
    rows: Rows
    ask: Address | None = None


class Cluster:
    """Commits, reads and scans over all primaries; as `Primary`, a read sees every commit that was sent before it."""

    def __init__(self, nodes: Nodes, *, timeout_seconds: float, replicas: int) -> None:
        self._routes = Routes(nodes, timeout_seconds)
        self._timeout, self._replicas = timeout_seconds, replicas
        self._number = 0
        self._open = False  # whether anything new may be sent
        self._bounced = np.zeros(HASH_SLOTS, bool)
        self._kept: list[_Kept] = []
        self._moved: list[str] = []
        self._flying: set[asyncio.Future[list[Any]]] = set()
        self._last: asyncio.Future[list[Any]] | None = None  # that waits for replicas
        self._failure = "no node of it has answered yet"
        self._work = asyncio.Event()
        self._round: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._rounds(), name="cluster")
        self._work.set()

    def commit(self, *columns: Array, replicated: bool) -> asyncio.Future[list[Any]]:
        """See RedisStore.commit; errors are the store's own. A command a session: a script's keys share a hash slot."""
        staged = columns[2].shape[1] >= commit.STAGED_BYTES
        return self._begin(
            wires=(commit.staged if staged else commit.apart)(*columns),
            again=lambda rows: commit.apart(*(column[rows] for column in columns)),
            staged=staged,
            slots=hash_slots(columns[0]),
            replicas=self._replicas if replicated else 0,
        )

    async def read(self, keys: Array) -> list[Any]:
        """What is at `keys`, (N, K) uint8."""
        if self._last is not None and not self._last.done():
            await asyncio.wait([self._last])
        wires = commit.reads(keys)
        return await self._begin(wires=wires, again=lambda rows: wires[rows], slots=hash_slots(keys))

    async def scan(self, prefix: bytes, cursor: int, count: int) -> Found:
        """See RedisStore.scan: one primary after the other. Raises ReplyError."""
        at, place = divmod(cursor, _NODES)

        async def some() -> Found:
            primaries = self._routes.primaries
            if place >= len(primaries):
                return 0, []
            following, found = await scanned(self._routes.pipe(primaries[place]), prefix, at, count)
            next_place = place if following else place + 1
            return following * _NODES + next_place if next_place < len(primaries) else 0, found

        return await self._insist(some)

    async def ping(self) -> None:
        """Raises ReplyError."""

        async def each() -> None:
            if not self._routes.primaries:
                raise ConnectionLost("no primary is known")
            for address in self._routes.primaries:
                await pinged(self._routes.pipe(address))

        await self._insist(each)

    async def close(self) -> None:
        while not self._task.done():
            self._task.cancel()  # again and again: redis-py may lose one while it connects
            await asyncio.wait([self._task], timeout=_FIRST_PAUSE)
        await self._routes.close()
        for kept in self._kept:
            self._expire(kept.request)

    def _begin(self, **columns: Any) -> asyncio.Future[list[Any]]:
        self._number += 1
        request = _Request(number=self._number, **columns)
        request.timer = asyncio.get_running_loop().call_later(self._timeout, self._expire, request)
        if request.replicas:
            self._last = request.answer
        kept = self._bounced[request.slots] | (not self._open)
        rows = np.arange(len(kept))
        if kept.any():
            self._keep(_Kept(request, rows[kept]))
        self._send(request, rows[~kept], again=False)
        return request.answer

    async def _insist(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """What is asked of nodes, until they answer. Raises StoreUnavailable at the timeout."""
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    try:
                        return await ask()
                    except ConnectionLost as error:
                        self._failure = str(error)
                        self._work.set()
                        await asyncio.shield(self._round)
        except TimeoutError:
            raise self._late() from None

    # ---- out

    def _send(self, request: _Request, rows: Rows, *, again: bool) -> None:
        """To whom they belong."""
        owners = self._routes.owner[request.slots[rows]]
        for owner in np.unique(owners).tolist():
            mine = rows[owners == owner]
            if owner == NOBODY:
                self._keep(_Kept(request, mine))
            else:
                self._send_to(self._routes.primaries[owner], request, mine, again=again)

    def _send_to(self, address: Address, request: _Request, rows: Rows, *, again: bool, asking: bool = False) -> None:
        wires = request.again(rows) if again else request.wires[rows]
        pairs = asking or (request.staged and not again)
        wire = b"".join(_ASKING + each.tobytes() for each in wires) if asking else wires.tobytes()
        if request.replicas:
            wire += wait(request.replicas, self._timeout)
        pipe = self._routes.pipe(address, waiting=request.replicas > 0)
        sent = pipe.send(wire, (1 + pairs) * len(rows) + bool(request.replicas))
        self._flying.add(sent)
        sent.add_done_callback(partial(self._land, request, rows, pairs=pairs))

    # ---- and back

    def _land(self, request: _Request, rows: Rows, sent: asyncio.Future[list[Any]], *, pairs: bool) -> None:
        """One node's part of a request is answered: in the order in which they were sent there."""
        self._flying.discard(sent)
        failure = sent.exception()
        if isinstance(failure, ConnectionLost):
            self._failure = str(failure)
            self._bounced[request.slots[rows]] = True
            self._keep(_Kept(request, rows))
            return
        if failure is not None:  # it came too late, and may come yet
            request.settle(rows.tolist(), [failure] * len(rows))
            return
        replies = sent.result()
        acknowledged = replies.pop() if request.replicas else None
        found = commit.outcomes(replies) if pairs else replies
        outcomes = [each[0] if type(each) is list else each for each in found]
        good = self._sorted_out(request, rows, outcomes)
        if good is not None:
            rows, outcomes = rows[good], [outcomes[place] for place in good]
        if request.replicas:
            outcomes = if_replicated(outcomes, acknowledged, request.replicas)
        request.settle(rows.tolist(), outcomes)

    def _sorted_out(self, request: _Request, rows: Rows, outcomes: list[Any]) -> list[int] | None:
        """Keep the rows that bounced, or came after such; the places of the others, None for all."""
        slots = request.slots[rows]
        if ReplyError not in map(type, outcomes) and commit.UNSTAGED not in outcomes and not self._bounced[slots].any():
            return None
        good = []
        for place, (slot, outcome) in enumerate(zip(slots.tolist(), outcomes, strict=True)):
            told = str(outcome) if isinstance(outcome, ReplyError) else ""
            elsewhere = told.startswith(_NOT_HERE)
            if not (elsewhere or outcome == commit.UNSTAGED or self._bounced[slot]):
                good.append(place)
                continue
            self._bounced[slot] = True
            if elsewhere:
                self._failure = told
            if told.startswith("MOVED"):
                self._moved.append(told)
            self._keep(_Kept(request, rows[place : place + 1], _asked(told)))
        return good

    # ---- rounds

    def _keep(self, kept: _Kept) -> None:
        self._kept.append(kept)
        self._work.set()

    async def _rounds(self) -> None:
        loop = asyncio.get_running_loop()
        pause, last = 0.0, -np.inf
        while True:
            await self._work.wait()
            again = loop.time() - last < 2 * _LONGEST_PAUSE
            pause = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE) if again else 0.0
            await asyncio.sleep(pause)
            self._failure = await self._routes.ask() or self._failure
            self._open = False
            await self._still()
            self._work.clear()
            self._routes.take(self._moved)
            kept, self._kept = self._kept, []
            self._moved = []
            self._bounced[:] = False
            for each in sorted(kept, key=lambda each: each.request.number):
                self._send_again(each)
            self._open = True
            last = loop.time()
            self._round.set_result(None)
            self._round = loop.create_future()

    async def _still(self) -> None:
        """Wait until nothing is in flight."""
        if self._flying:
            await asyncio.wait(self._flying, timeout=_STILL_SECONDS)
        self._routes.drop()
        if self._flying:
            await asyncio.wait(self._flying)

    def _send_again(self, kept: _Kept) -> None:
        if kept.request.answer.done():  # too late
            return
        if kept.ask is None:
            self._send(kept.request, kept.rows, again=True)
        else:
            self._send_to(kept.ask, kept.request, kept.rows, again=True, asking=True)

    def _expire(self, request: _Request) -> None:
        if not request.answer.done():
            late = self._late()
            request.answer.set_result([late if each is _NONE_YET else each for each in request.outcomes])

    def _late(self) -> StoreUnavailable:
        text = f"the cluster did not answer within {self._timeout:g} s ({self._failure}); safe to retry"
        return StoreUnavailable(text)


def _asked(told: str) -> Address | None:
    if not told.startswith("ASK "):
        return None
    host, _, port = told.split()[2].rpartition(":")
    return (host, int(port)) if host else None
