"""Whether an operation continues its session, and if not, what to tell its client. Pure.

`continues` decides a batch by columns; `judge` says for one operation why not. Both must agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine.operation import Block, Create, Kind, Rows
from recurra.server.store import record
from recurra.wire.errors import (
    AlreadyApplied,
    Behind,
    DataLoss,
    Diverged,
    ModelChanged,
    RecurraError,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionNotFound,
    StateReset,
)

Array = NDArray[Any]


def continues(block: Block, rows: Rows, heads: Array, layout: Array) -> NDArray[np.bool_]:
    """Which rows of `block` apply to sessions at `heads`, (rows,) HEADER. `layout`: (2,) uint64, the model's."""
    ids, afters = block.ids[rows], block.afters[rows]
    follows = (afters == heads["id"]).all(1)
    anywhere = ~afters.any(1)
    live, closed = heads["kind"] == record.LIVE, heads["kind"] == record.CLOSED
    missing = heads["format"] == 0
    new = (missing & anywhere) | (closed & follows)
    if block.create is Create.NEW:
        fits = new | (live & follows)
    elif block.create is Create.NEVER:
        fits = live & (follows | anywhere)
    else:
        fits = new | (live & (follows | anywhere))
    seen = (ids == heads["id"]).all(1) | (ids == heads["incarnation"]).all(1)
    same_layout: NDArray[np.bool_] = (heads["layout"] == layout).all(1) | ~live | _needs_no_state(block)
    fitting: NDArray[np.bool_] = fits & ~seen & same_layout
    return fitting


def judge(block: Block, row: int, head: Array, layout: Array, *, digest: Array, now_ms: int) -> RecurraError | None:
    """Why a row of `block` does not apply to a session that stands at `head`, one HEADER row just read from the store.

    None: it is a duplicate, or it applies after all.
    """
    if not head["format"]:
        return _missing(block, row, now_ms)
    identity, after, last = block.ids[row].tobytes(), block.afters[row].tobytes(), head["id"].tobytes()
    anywhere = not any(after)
    if last == identity:
        return (
            None
            if (head["digest"] == digest).all()
            else _at(
                head, Diverged, "this operation id came before, with another input: every operation needs a new id"
            )
        )
    if head["incarnation"].tobytes() == identity:
        return _at(
            head, AlreadyApplied, "this operation created the session, and others followed; its reply is not kept"
        )
    if head["kind"] == record.CLOSED:
        begins = after == last and block.create is not Create.NEVER
        return (
            None
            if begins
            else _at(head, SessionClosed, "the session was ended; to begin it anew, continue its last operation")
        )
    if anywhere and block.create is Create.NEW:
        return _at(head, SessionExists, "the session exists already")
    if not anywhere and after != last:
        if head["operation"] in (Kind.RESET, Kind.SET):
            return _at(head, StateReset, "somebody else reset the session or set its state meanwhile")
        return _at(head, Behind, "the session's last operation is not the one that this one continues")
    if (head["layout"] != layout).any() and not _needs_no_state(block):
        return _at(
            head, ModelChanged, "the session's state was written by a model with other states: reset the session"
        )
    return None


def _missing(block: Block, row: int, now_ms: int) -> RecurraError | None:
    anywhere = not block.afters[row].any()
    if anywhere and block.create is not Create.NEVER:
        return None
    if anywhere or not block.told_expire_ms:
        return SessionNotFound("there is no such session")
    if now_ms >= block.told_expire_ms:
        return SessionExpired("the session expired: its time to live passed without an operation; start a new one")
    return DataLoss("the session is gone from the store, though it should live on: the store lost data")


def _at(head: Array, cls: type[RecurraError], message: str) -> RecurraError:
    """The error, with where the session stands."""
    error = cls(message)
    error.metadata = {
        "last_id": head["id"].tobytes().hex(),
        "position": str(int(head["position"])),
        "incarnation": head["incarnation"].tobytes().hex(),
    }
    return error


def _needs_no_state(block: Block) -> bool:
    return block.kind is Kind.END or (block.kind is Kind.RESET and block.whole)
