"""Operations on their way through the engine: a block is the columns of many, of one kind and shape."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.wire.errors import RecurraError

Array = NDArray[Any]
Rows = NDArray[np.intp]


class Kind(IntEnum):
    """What an operation does; kept in the record, so numbers stay."""

    PREDICT = 1
    RESET = 2
    SET = 3
    END = 4


class Create(IntEnum):
    """What an operation may do about a session that is not there."""

    IF_MISSING = 1
    NEVER = 2
    NEW = 3
    ANEW = 4  # begin it, whatever is there: what was is forgotten


@dataclass(eq=False, slots=True, kw_only=True)
class Block:
    """N operations, each of another session, and what became of them.

    Attributes:
        slots: (N,) slots of the sessions; all 0 for a stateless predict.
        ids, afters: (N, 2) uint64; an `after` of zeros continues whatever is there.
        inputs: in the signature's order, (N, T, ...) or (N, ...); empty unless it predicts.
        timesteps: T.
        whole: a reset of all states, whatever they are now.
        given: states by index in the signature that replace the session's before the run, (N, ...) or (1, ...).
        start: what the model's start graph makes more such states of, each (1, ...); of a block of one operation.
        salt: digest of all that is not in `inputs`.
        commit: whether the session changes.
        closes: whether the session ends with it.
        checkpointed: whether it may be answered before the store has it.
        replicated: whether it is answered only once the store's replicas have it.
        told_expire_ms: the expiry that the client was last told, 0 for none.
        key: blocks of one key can be run in one batch.
        deadline, sequence: monotonic seconds; order of arrival, given by the engine.
        abandoned: nobody waits for it any more.
        waiting: rows that are still to be started, ascending.
        tries: (N,) how often a row was decided anew.
        done: resolved once no row is pending.
        landed: called then, at once: who waits for `done` has his turn later.
    """

    kind: Kind
    slots: Rows
    ids: NDArray[np.uint64]
    afters: NDArray[np.uint64]
    inputs: list[Array] = field(default_factory=list)
    timesteps: int = 0
    given: dict[int, Array] = field(default_factory=dict)
    start: list[Array] = field(default_factory=list)
    whole: bool = False
    salt: int = 0
    commit: bool = True
    closes: bool = False
    checkpointed: bool = False
    replicated: bool = False
    return_states: bool = False
    return_sequences: bool = True
    create: Create = Create.IF_MISSING
    ttl_ms: int
    told_expire_ms: int = 0
    deadline: float
    sequence: int = 0
    arrival: float = 0.0
    abandoned: bool = False
    key: Hashable = field(init=False)
    waiting: Rows = field(init=False)
    tries: NDArray[np.uint8] = field(init=False)
    pending: int = field(init=False)
    done: asyncio.Future[None] = field(init=False)
    landed: Callable[[Block], None] | None = None
    outputs: list[Array] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)
    headers: Array | None = None
    durable: NDArray[np.uint64] | None = None  # positions that the store has; None: the headers'
    answered: NDArray[np.bool_] | None = None  # by row, if not all at once
    duplicates: set[int] = field(default_factory=set)
    errors: dict[int, RecurraError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.slots)
        self.closes |= self.kind is Kind.END
        self.key = self.key_for(self.timesteps, [array.shape[1:] for array in self.inputs])
        self.waiting, self.pending = np.arange(count), count
        self.tries = np.zeros(count, np.uint8)
        self.done = asyncio.get_running_loop().create_future()

    @property
    def stateless(self) -> bool:
        """Whether no session is involved."""
        return not self.slots[0]

    def key_for(self, timesteps: int, shapes: Iterable[tuple[int, ...]]) -> Hashable:
        """The key, were its chunk of so many timesteps, and its inputs of these shapes."""
        durability = self.commit, self.checkpointed, self.replicated
        flags = self.stateless, self.whole, self.closes, self.return_sequences, self.return_states
        return self.kind, durability, flags, timesteps, tuple(shapes)

    def answer(
        self,
        rows: Rows,
        outputs: list[Array],
        states: list[Array],
        headers: Array,
        durable: NDArray[np.uint64] | None = None,
    ) -> None:
        """Rows are done: their outputs and states (each (rows, ...)) and the headers that stand after them."""
        if len(rows) == len(self.slots):
            self.outputs, self.states, self.headers, self.durable = outputs, states, headers, durable
        else:
            if self.headers is None:
                self.headers = np.zeros(len(self.slots), headers.dtype)
                self.answered = np.zeros(len(self.slots), bool)
                self.durable = np.zeros(len(self.slots), np.uint64)
                self.outputs = [np.zeros((len(self.slots), *o.shape[1:]), o.dtype) for o in outputs]
                self.states = [np.zeros((len(self.slots), *s.shape[1:]), s.dtype) for s in states]
            assert self.answered is not None
            assert self.durable is not None
            self.headers[rows], self.answered[rows] = headers, True
            self.durable[rows] = headers["position"] if durable is None else durable
            for mine, new in zip(self.outputs + self.states, outputs + states, strict=True):
                mine[rows] = new
        self._settle(len(rows))

    def refuse(self, row: int, error: RecurraError) -> None:
        """One row has failed."""
        self.errors[row] = error
        self._settle(1)

    def unanswered(self) -> Rows:
        """The rows that are neither answered nor refused."""
        if not self.pending:
            return np.empty(0, np.intp)
        open_ = np.ones(len(self.slots), bool) if self.answered is None else ~self.answered
        open_[list(self.errors)] = False
        return np.flatnonzero(open_)

    def _settle(self, rows: int) -> None:
        self.pending -= rows
        if not self.pending and not self.done.done():
            self.done.set_result(None)
            landed, self.landed = self.landed, None  # else they hold each other for ever
            if landed is not None:
                landed(self)
