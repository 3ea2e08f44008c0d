"""Whether an operation continues its session, and if not, what to tell its client. Pure.

`continues` decides a batch by columns; `judge` says for one operation why not. Both must agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine.batch import Batch
from recurra.server.engine.operation import Block, Create, Kind
from recurra.server.engine.ownership import Ownership
from recurra.server.store import record
from recurra.wire.errors import (
    AlreadyApplied,
    Behind,
    DataLoss,
    Diverged,
    ModelChanged,
    Owned,
    RecurraError,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionNotFound,
    StateReset,
)

Array = NDArray[Any]

_LIVE = bytes([record.LIVE])


def continues(batch: Batch, heads: Array, layout: Array, ownership: Ownership, *, now_ms: int) -> NDArray[np.bool_]:
    """Which operations of `batch` apply to sessions that stand at `heads`, (N,) HEADER. `layout`: (2,) uint64."""
    if _all_go_on(batch, heads, layout, now_ms):
        return np.ones(len(batch), bool)
    follows = (batch.afters == heads["id"]).all(1)
    anywhere = ~batch.afters.any(1)
    live, closed = heads["kind"] == record.LIVE, heads["kind"] == record.CLOSED
    missing = (heads["format"] == 0) & (batch.told_expire_ms <= now_ms)  # or it is lost
    begins = (missing & anywhere) | (closed & (follows | batch.anew))
    goes_on = live & (follows | (anywhere & (batch.creates != Create.NEW)))
    known = (heads["id"] == batch.ids).all(1) | (heads["incarnation"] == batch.ids).all(1)
    known |= (heads["recent"] == batch.ids[:, None]).all(2).any(1)
    fits: NDArray[np.bool_] = ((begins & (batch.creates != Create.NEVER)) | goes_on) & ~known
    if not _needs_no_state(batch.head):
        fits &= (heads["layout"] == layout).all(1) | ~live | batch.anew
    if not batch.head.checkpointed:  # a stream takes over
        fits &= ~ownership.others(heads, now_ms)
    return fits


def _all_go_on(batch: Batch, heads: Array, layout: Array, now_ms: int) -> bool:
    """Whether each operation plainly continues, by name, a live session of this layout that nobody owns."""
    return bool(
        batch.afters.tobytes() == heads["id"].tobytes()
        and heads["kind"].tobytes() == _LIVE * len(batch)
        and heads["layout"].tobytes() == layout.tobytes() * len(batch)
        and (batch.head.checkpointed or heads["owned_until_ms"].max() <= now_ms)
        and not np.count_nonzero(heads["recent"][:, :, 0] == batch.ids[:, :1])
        and not np.count_nonzero(heads["incarnation"][:, 0] == batch.ids[:, 0])
        and not np.count_nonzero(batch.afters[:, 0] == batch.ids[:, 0])
    )


def judge(
    block: Block, row: int, head: Array, layout: Array, *, digest: Array, others: bool, now_ms: int
) -> RecurraError | None:
    """Why a row of `block` does not apply to a session that stands at `head`, one HEADER row just read from the store.

    None: it is a duplicate, or it applies after all. `others`: a stream on another replica owns the session.
    """
    if not head["format"]:
        return _missing(block, row, now_ms)
    identity, after, last = block.ids[row].tobytes(), block.afters[row].tobytes(), head["id"].tobytes()
    anywhere = not any(after)
    if last == identity:
        same = (head["digest"] == digest).all()
        return None if same else _at(head, Diverged, "this operation id came before with another input: use a new one")
    if head["incarnation"].tobytes() == identity or identity in [known.tobytes() for known in head["recent"]]:
        return _at(head, AlreadyApplied, "this operation was applied, others followed, and its reply is not kept")
    if head["kind"] == record.CLOSED:
        begins = block.create is Create.ANEW or (after == last and block.create is not Create.NEVER)
        return (
            None if begins else _at(head, SessionClosed, "the session was ended; an operation after that begins anew")
        )
    if others and not block.checkpointed:
        seconds = (int(head["owned_until_ms"]) - now_ms) / 1000
        return Owned(
            "a stream on another replica owns the session: ask that one, or wait", retry_after=min(1.0, seconds)
        )
    if anywhere and block.create is Create.NEW:
        return _at(head, SessionExists, "the session exists already")
    if not anywhere and after != last:
        if head["operation"] in (Kind.RESET, Kind.SET):
            return _at(head, StateReset, "somebody else reset the session or set its state meanwhile")
        return _at(head, Behind, "the session's last operation is not the one that this one continues")
    if (head["layout"] != layout).any() and not (_needs_no_state(block) or block.create is Create.ANEW):
        return _at(head, ModelChanged, "the session's state is of a model with other states: reset the session")
    return None


def gone(told_expire_ms: int, now_ms: int) -> RecurraError:
    """What to tell of a session that was there, and was to live until then."""
    if now_ms >= told_expire_ms:
        return SessionExpired("the session expired: its time to live passed without an operation; start a new one")
    return DataLoss("the session is gone from the store, though it should live on: the store lost data")


def _missing(block: Block, row: int, now_ms: int) -> RecurraError | None:
    begins = block.create is not Create.NEVER and not block.afters[row].any()
    if begins and block.told_expire_ms <= now_ms:
        return None
    return gone(block.told_expire_ms, now_ms) if block.told_expire_ms else SessionNotFound("there is no such session")


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
