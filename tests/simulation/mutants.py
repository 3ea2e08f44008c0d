"""Faults that the simulation must find: each takes one thing away that keeps the protocol right."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
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
from tests.simulation.store import Cluster, Node

Array = np.ndarray
_continues, _give, _fly, _take, _matches = (
    admission.continues,
    Batch.give,
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
    if batch is not None and columns["answer"] is not None and columns.get("refusal") is None:
        commits._pending.answer(batch, columns["outputs"], columns["states"], columns["headers"])
        columns["batch"] = None
    return _fly(commits, **columns)


def reset_lost(batch: Batch, states: list[Array], batch_axes: list[int]) -> Array:
    """A reset is told, and the state stays."""
    rebased = _give(batch, [state.copy() for state in states], batch_axes)
    return rebased if batch.head.kind is Kind.RESET else _give(batch, states, batch_axes)


async def no_wait(cluster: Cluster, upto: int, node: Node) -> bool:
    """Nobody waits for the store's replica."""
    return True


def all_durable(checkpoints: Checkpoints, batch: Batch, headers: Array, tensors: list[Array]) -> Array:
    """What was only computed is told to be stored."""
    _take(checkpoints, batch, headers, tensors)
    return headers["position"]


def stale_epochs(pending: Any, batch: Batch) -> Array:
    """What rests on a commit that failed is kept."""
    return np.ones(len(batch), bool)


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


def _patched(*places: tuple[Any, str, Any]) -> Callable[[], AbstractContextManager[Any]]:
    def entered() -> ExitStack:
        stack = ExitStack()
        for owner, name, mutant in places:
            stack.enter_context(patch.object(owner, name, mutant))
        return stack

    return entered


MUTANTS: Final = {
    "after ignored": _patched((admission, "continues", after_ignored)),
    "no input digest": _patched(
        (admission, "digests", no_digest), (Batch, "digests", lambda batch: no_digest([], batch.slots))
    ),
    "no dedupe": _patched((admission, "continues", no_dedupe)),
    "compare of position only": _patched((Node, "matches", staticmethod(position_only))),
    "create on missing": _patched((Node, "matches", staticmethod(create_on_missing))),
    "owner not fenced": _patched((Node, "matches", staticmethod(owner_not_fenced))),
    "reply before commit": _patched((Commits, "_fly", reply_before_commit)),
    "reset lost": _patched((Batch, "give", reset_lost)),
    "replicas not waited for": _patched((Cluster, "has_replicated", no_wait)),
    "durable too early": _patched((Checkpoints, "take", all_durable)),
    "a retry is named anew": _patched((History, "name", no_retry)),
    "nothing is replayed": _patched((History, "since", no_replay)),
}
