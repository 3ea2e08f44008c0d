"""What makes a batch replicated: a WAIT behind it, on the connection that wrote it."""

from __future__ import annotations

from typing import Any

from hiredis import ReplyError

from recurra.server.store.pipe import packed
from recurra.wire.errors import NotReplicated


def wait(replicas: int, timeout_seconds: float) -> bytes:
    """The command, as it goes over the wire; it waits for half of the store's timeout at most."""
    return packed("WAIT", replicas, int(timeout_seconds * 500))


def if_replicated(outcomes: list[Any], acknowledged: Any, replicas: int) -> list[Any]:
    """The sessions' outcomes, given what WAIT was answered: too few replicas, and none is told that it is applied."""
    if isinstance(acknowledged, int) and acknowledged >= replicas:
        return outcomes
    many = acknowledged if isinstance(acknowledged, int) else f"unknown ({acknowledged})"
    error = NotReplicated(
        f"replicas of the store that have the operation: {many}; needed: {replicas}. It may be applied; safe to retry"
    )
    return [each if isinstance(each, ReplyError) else error for each in outcomes]
