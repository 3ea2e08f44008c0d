"""Where sessions stand after their operations. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine.batch import Batch
from recurra.server.store import record

Array = NDArray[Any]


def advanced(before: Array, batch: Batch, rebased: NDArray[np.bool_], *, now_ms: int) -> Array:
    """The headers of a batch's sessions after its operations, (N,) HEADER; what its writer knows is left as it was.

    Args:
        before: (N,) HEADER, where they stood.
        rebased: (N,) bool, whose position starts from 0.
    """
    new, kind = record.headers(record.words(before).copy()), batch.head.kind
    new["recent"][:, 1:], new["recent"][:, 0] = before["recent"][:, :-1], before["id"]
    new["id"], new["digest"] = batch.ids, batch.digests()
    new["operation"], new["update_ms"] = kind, now_ms
    created = (before["kind"] != record.LIVE) | batch.anew
    if created.any():
        new["format"], new["kind"] = record.FORMAT, record.LIVE
        new["incarnation"][created] = batch.ids[created]
    new["flags"] = created * record.CREATED
    new["position"][created | rebased] = 0
    new["position"] += np.uint64(batch.head.timesteps)
    if batch.head.closes:
        new["kind"] = record.CLOSED
    return new
