"""Where sessions stand after their operations. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine.batch import Batch
from recurra.server.engine.operation import Kind
from recurra.server.store import record

Array = NDArray[Any]


def advanced(before: Array, batch: Batch, rebased: NDArray[np.bool_], *, now_ms: int) -> Array:
    """The headers of a batch's sessions after its operations, (N,) HEADER; what its writer knows is left as it was.

    Args:
        before: (N,) HEADER, where they stood.
        rebased: (N,) bool, whose position starts from 0.
    """
    new, kind = before.copy(), batch.head.kind
    created = before["kind"] != record.LIVE
    new["format"], new["operation"] = record.FORMAT, kind
    new["kind"] = record.CLOSED if kind is Kind.END else record.LIVE
    new["recent"][:, 1:], new["recent"][:, 0] = before["recent"][:, :-1], before["id"]
    new["id"], new["digest"] = batch.ids, batch.digests()
    new["incarnation"] = np.where(created[:, None], batch.ids, before["incarnation"])
    new["position"] = np.where(created | rebased, 0, before["position"]) + np.uint64(batch.head.timesteps)
    new["flags"], new["update_ms"] = created * record.CREATED, now_ms
    return new
