"""Any mix of operations, retries and duplicates over two servers on one store gives what a plain model of it says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from numpy.typing import NDArray

from recurra.server.store import record
from recurra.v1 import session_pb2
from recurra.wire.errors import (
    AlreadyApplied,
    Behind,
    Contended,
    Diverged,
    Mismatch,
    Overloaded,
    RecurraError,
    SessionClosed,
    SessionNotFound,
    StateReset,
)
from tests.conftest import StartServer
from tests.service.caller import Caller, Reply
from tests.service.processes import ValkeyProcess
from tests.service.zoo import CLOSE, MODELS

GRU = MODELS["gru"]
NOWHERE = bytes(16)  # an `after` that continues whatever is there

Array = NDArray[Any]


@dataclass(frozen=True)
class Op:
    """One operation. `given`: the state it sets, or starts from."""

    id: bytes
    after: bytes
    kind: str
    x: Array = field(default_factory=lambda: np.zeros((0, 3), np.float32), compare=False)
    given: Array | None = field(default=None, compare=False)

    def perform(self, caller: Caller, name: str) -> tuple[session_pb2.Session, Array | None]:
        named = {"id": self.id, "after": self.after}
        if self.kind == "predict":
            reply = caller.predict("gru", name, self.x, initial=self.initial, **named)
            return reply.session, reply.y
        if self.kind == "set":
            assert self.initial is not None
            return caller.set_state("gru", name, self.initial, **named), None
        return getattr(caller, self.kind)("gru", name, **named), None

    @property
    def initial(self) -> dict[str, Array] | None:
        return None if self.given is None else {"h0": self.given}


@dataclass(frozen=True)
class Standing:
    """What there should be under one name: at first nothing."""

    kind: str = "missing"
    ops: tuple[Op, ...] = ()
    state: tuple[Array, ...] = GRU.fresh
    position: int = 0
    incarnation: bytes = b""
    y: Array | None = None

    @property
    def last(self) -> bytes:
        return self.ops[-1].id if self.ops else NOWHERE

    def apply(self, op: Op) -> Standing | type[RecurraError]:
        """The standing after `op`, or what `op` must be refused with."""
        if self.kind == "missing":
            if op.after != NOWHERE or op.kind == "end":
                return SessionNotFound
        elif op.id == self.last:
            return self if op == self.ops[-1] else Diverged
        elif self.kind == "closed":
            if op.after != self.last or op.kind == "end":
                return SessionClosed
        elif op.after not in (NOWHERE, self.last):
            return StateReset if self.ops[-1].kind in ("reset", "set") else Behind
        created = self.kind != "live"
        start = Standing() if created else self
        base = start.state if op.given is None else (op.given,)
        position = 0 if op.given is not None or op.kind == "reset" else start.position
        y = None
        if op.kind == "reset":
            base = GRU.fresh
        elif op.kind == "predict":
            y, *after = GRU.run(op.x, *base)
            base, position = tuple(after), position + len(op.x)
        kind = "closed" if op.kind == "end" else "live"
        return Standing(kind, (*self.ops, op), base, position, op.id if created else self.incarnation, y)


WHERE: dict[str, Any] = {"at": st.integers(0, 2), "server": st.integers(0, 1)}


class Machine(RuleBasedStateMachine):
    callers: tuple[Caller, ...] = ()
    _examples = count()

    def __init__(self) -> None:
        super().__init__()
        example = next(self._examples)
        self.names = [f"{example} {name}" for name in "abc"]
        self.standings = dict.fromkeys(self.names, Standing())
        self._ids = count(1)

    def new_id(self) -> bytes:
        """Ids that differ in one half only, as a careless client's may."""
        number = next(self._ids)
        return (number % 4).to_bytes(8, "little") + (number // 4).to_bytes(8, "little")

    def draw(self, seed: int, timesteps: int) -> Array:
        return GRU.draw(seed, timesteps)

    def check(self, caller: Caller, name: str, op: Op) -> None:
        """Perform `op`; what comes of it must be what should."""
        before = self.standings[name]
        after = before.apply(op)
        refused = None
        try:
            session, y = op.perform(caller, name)
        except RecurraError as error:
            refused = error
        if refused is not None:
            assert type(refused) is after, f"{op} was refused: {refused!r}, at {before}"
            if isinstance(refused, Mismatch):
                assert (refused.last_id, refused.position) == (before.last, before.position)
            return
        assert isinstance(after, Standing), f"{op} was not refused as {after}"
        assert (session.last_id, session.position) == (after.last, after.position)
        assert session.incarnation == after.incarnation
        if y is not None:
            np.testing.assert_allclose(y, after.y, **CLOSE)
        self.standings[name] = after

    @rule(
        **WHERE,
        kind=st.sampled_from(["predict"] * 6 + ["started", "reset", "set", "end"]),
        after=st.sampled_from(["last"] * 4 + ["whatever"] * 2 + ["older", "unknown"]),
        timesteps=st.integers(1, 4),
        seed=st.integers(0, 99),
    )
    def act(self, *, at: int, server: int, kind: str, after: str, timesteps: int, seed: int) -> None:
        name = self.names[at]
        standing = self.standings[name]
        older = standing.ops[-2].id if len(standing.ops) > 1 else NOWHERE
        continued = {"last": standing.last, "whatever": NOWHERE, "older": older, "unknown": b"\xff" * 16}[after]
        op = Op(self.new_id(), continued, "predict" if kind == "started" else kind)
        if op.kind == "predict":
            op = replace(op, x=self.draw(seed, timesteps))
        if kind in ("started", "set"):
            op = replace(op, given=np.random.default_rng(seed).normal(size=(1, 4)).astype(np.float32))
        self.check(self.callers[server], name, op)

    @rule(**WHERE, back=st.sampled_from([1, 1, 1, 2, 3, 5, 9]))
    def retry(self, *, at: int, server: int, back: int) -> None:
        name = self.names[at]
        ops = self.standings[name].ops
        if not ops:
            return
        op = ops[-min(back, len(ops))]
        if op is ops[-1]:
            self.check(self.callers[server], name, op)
        elif op in ops[-1 - record.RECENT :]:
            with pytest.raises(AlreadyApplied):
                op.perform(self.callers[server], name)
        elif op.after != NOWHERE or op.id == self.standings[name].incarnation:
            with pytest.raises((AlreadyApplied, Behind, StateReset, SessionClosed)):
                op.perform(self.callers[server], name)

    @rule(**WHERE, seed=st.integers(100, 199))
    def use_the_last_id_again(self, *, at: int, server: int, seed: int) -> None:
        name = self.names[at]
        if self.standings[name].ops:
            op = Op(self.standings[name].last, NOWHERE, "predict", self.draw(seed, 5))
            with pytest.raises(Diverged):
                op.perform(self.callers[server], name)

    @rule(**WHERE, named=st.booleans(), seed=st.integers(0, 99))
    def ask_what_if(self, *, at: int, server: int, named: bool, seed: int) -> None:
        name = self.names[at]
        standing, x = self.standings[name], self.draw(seed, 3)
        if standing.kind != "closed":
            after = standing.last if named else NOWHERE
            reply = self.callers[server].predict("gru", name, x, commit=False, after=after)
            np.testing.assert_allclose(reply.y, GRU.whole(x, state=standing.state), **CLOSE)
            assert reply.position == standing.position + 3

    @rule(
        at=st.integers(0, 2),
        servers=st.lists(st.integers(0, 1), min_size=2, max_size=6),
        twice=st.integers(0, 5),
        seed=st.integers(0, 99),
    )
    def keep_many_in_flight(self, *, at: int, servers: list[int], twice: int, seed: int) -> None:
        """A chain of operations, each sent before the one before it was answered, some twice and elsewhere too."""
        name = self.names[at]
        standing = self.standings[name]
        standings, ops = [standing], []
        for step in range(len(servers)):
            ops.append(Op(self.new_id(), standings[-1].last, "predict", self.draw(seed + step, 1)))
            following = standings[-1].apply(ops[-1])
            assert isinstance(following, Standing)
            standings.append(following)
        places = [*range(len(ops)), twice % len(ops)]
        sent = [
            self.callers[(servers[place] + again) % 2].send(
                "gru", name, ops[place].x, id=ops[place].id, after=ops[place].after
            )
            for again, place in enumerate(places)
        ]
        outcomes = [pending.outcome() for pending in sent]
        for place, outcome in zip(places, outcomes, strict=True):
            if isinstance(outcome, Reply):
                np.testing.assert_allclose(outcome.y, standings[place + 1].y, **CLOSE)
            else:
                assert isinstance(
                    outcome,
                    Behind | StateReset | AlreadyApplied | Contended | Overloaded | SessionNotFound | SessionClosed,
                ), repr(outcome)
        stands = self.stands(name)
        [applied] = [place for place, each in enumerate(standings) if each.last == stands]
        self.standings[name] = standings[applied]
        for place in range(applied, len(ops)):
            self.check(self.callers[servers[place]], name, ops[place])

    def stands(self, name: str) -> bytes:
        try:
            return self.callers[0].get("gru", name).last_id
        except SessionNotFound:
            return NOWHERE
        except SessionClosed as error:
            return bytes.fromhex(error.metadata["last_id"])

    @rule(**WHERE)
    def look(self, *, at: int, server: int) -> None:
        name = self.names[at]
        standing = self.standings[name]
        if standing.kind == "live":
            got = self.callers[server].get("gru", name)
            assert (got.last_id, got.position) == (standing.last, standing.position)
            assert got.incarnation == standing.incarnation
            np.testing.assert_allclose(self.callers[server].state("gru", name)["h0"], standing.state[0], **CLOSE)

    @invariant()
    def every_session_stands_where_it_should(self) -> None:
        assert [self.stands(name) for name in self.names] == [self.standings[name].last for name in self.names]


def test_two_servers_on_one_store_give_what_one_plain_model_gives(start_server: StartServer, valkey: ValkeyProcess):
    servers = [start_server(store=valkey.url), start_server("--slots", "2", store=valkey.url)]
    with Caller(servers[0].address) as one, Caller(servers[1].address) as two:

        class Run(Machine):
            callers = (one, two)

        run_state_machine_as_test(
            Run,
            settings=settings(
                max_examples=40,
                stateful_step_count=30,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
