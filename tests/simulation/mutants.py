"""Faults that the simulation must find: each takes one thing away that keeps the protocol right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from recurra.client.history import History
from recurra.server.engine import admission
from recurra.server.engine.batch import Batch
from recurra.server.engine.checkpoints import Checkpoints
from recurra.server.engine.commits import Commits
from recurra.server.engine.operation import Kind
from recurra.server.store import record
from tests.simulation.plan import Plan
from tests.simulation.store import Cluster, Node

Array = np.ndarray
_continues, _given, _fly, _take, _matches = (
    admission.continues,
    Batch.given,
    Commits._fly,
    Checkpoints.take,
    Node.matches,
)


def after_ignored(batch: Batch, heads: Array, *others: Any, **more: Any) -> Array:
    """An operation continues whatever is there."""
    named, batch.afters = batch.afters, heads["id"].copy()
    try:
        return _continues(batch, heads, *others, **more)
    finally:
        batch.afters = named


def no_dedupe(batch: Batch, heads: Array, *others: Any, **more: Any) -> Array:
    """What was applied is applied again."""
    return _continues(batch, heads, *others, **more) | (heads["id"] == batch.ids).all(1)


def no_digest(inputs: list[Array], salts: Array) -> Array:
    """All inputs look alike."""
    return np.zeros((max(len(salts), *(len(array) for array in inputs)) if inputs else len(salts), 2), np.uint64)


def position_only(there: bytes, expected: bytes, new: bytes) -> bool:
    """The compare-and-set compares positions."""
    if not there or expected == bytes(len(expected)):
        return _matches(there, expected, new)
    return bool(_head(there)["position"] == _head(expected)["position"])


def create_on_missing(there: bytes, expected: bytes, new: bytes) -> bool:
    """A commit makes a record where none is."""
    return not there or _matches(there, expected, new)


def owner_not_fenced(there: bytes, expected: bytes, new: bytes) -> bool:
    """Who believes that a session is his writes it."""
    return bool(there and _head(new)["owner"].any()) or _matches(there, expected, new)


def reply_before_commit(commits: Commits, **columns: Any) -> Any:
    """An answer leaves when its commit is sent."""
    batch = columns.get("batch")
    if batch is not None and columns.get("parcel") is not None and columns.get("refusal") is None:
        commits._pending.answer(batch, columns["outputs"], columns["states"], columns["headers"])
        columns["batch"] = None
    return _fly(commits, **columns)


def reset_lost(batch: Batch) -> Any:
    """A reset is told, and the state stays."""
    found, rebased = _given(batch)
    return [] if batch.head.kind is Kind.RESET else found, rebased


async def no_wait(cluster: Cluster, upto: int, node: Node) -> bool:
    """Nobody waits for the store's replica."""
    return True


def all_durable(checkpoints: Checkpoints, batch: Batch, headers: Array, tensors: list[Array]) -> Array:
    """What was only computed is told to be stored."""
    _take(checkpoints, batch, headers, tensors)
    return headers["position"]


def no_retry(history: History, request: object, nbytes: int, **more: Any) -> Any:
    """The SDK names a retry anew."""
    pending, history._pending = history._pending, []
    try:
        return _name(history, request, nbytes, **more)
    finally:
        history._pending = pending + history._pending


def no_replay(history: History, stands_at: bytes) -> Any:
    """The SDK goes on from where the store was thrown back to."""
    replay = _since(history, stands_at)
    if replay:
        history.last = stands_at
    return None if replay is None else []


_name, _since = History.name, History.since


def _head(data: bytes) -> Any:
    return np.frombuffer(data[: record.HEADER.itemsize], record.HEADER)[0]


@dataclass(frozen=True)
class Mutant:
    """What takes the place of what. `plan`: of runs that are likely to show it."""

    places: tuple[tuple[Any, str, Any], ...]
    plan: Callable[[Random], Plan] = Plan.drawn

    @contextmanager
    def applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name, mutant in self.places:
                stack.enter_context(patch.object(owner, name, mutant))
            yield


def _one(owner: Any, name: str, mutant: Any, plan: Callable[[Random], Plan] = Plan.drawn) -> Mutant:
    return Mutant(((owner, name, mutant),), plan)


_NO_DIGEST: Final = (
    (admission, "digests", no_digest),
    (Batch, "digests", lambda batch: no_digest([], batch.slots)),
)
MUTANTS: Final = {
    "after ignored": _one(admission, "continues", after_ignored),
    "no input digest": Mutant(_NO_DIGEST),
    "no dedupe": _one(admission, "continues", no_dedupe),
    "compare of position only": _one(Node, "matches", staticmethod(position_only), Plan.rivalry),
    "create on missing": _one(Node, "matches", staticmethod(create_on_missing), Plan.rivalry),
    "owner not fenced": _one(Node, "matches", staticmethod(owner_not_fenced), Plan.rivalry),
    "reply before commit": _one(Commits, "_fly", reply_before_commit),
    "reset lost": _one(Batch, "given", reset_lost),
    "replicas not waited for": _one(Cluster, "has_replicated", no_wait),
    "durable too early": _one(Checkpoints, "take", all_durable),
    "a retry is named anew": _one(History, "name", no_retry),
    "nothing is replayed": _one(History, "since", no_replay),
}
