"""What the store says of a model's sessions: reads only, beside the engine."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine.seams import Store
from recurra.server.store import record
from recurra.wire.errors import RecurraError

Array = NDArray[Any]


class Reader:
    """Reads committed records, and only those."""

    def __init__(self, store: Store, model: str) -> None:
        self._store, self._model = store, model
        self._prefix = record.key_prefix("default", model)

    async def look(self, session: str) -> record.Record | None:
        """The session's record as the store has it. Raises StoreUnavailable, DataLoss."""
        identity = record.identity("default", self._model, session)
        key = np.frombuffer(record.key(self._prefix, identity), np.uint8)[None]
        [found] = await self._store.read(key)
        if isinstance(found, RecurraError):
            raise found
        return None if found is None else record.unpack(found, identity)

    async def scan(self, cursor: int, count: int) -> tuple[int, list[tuple[str, Array]]]:
        """Some live sessions, by name, with their headers, and the next cursor; 0 begins and ends."""
        following, found = await self._store.scan(self._prefix, cursor, count)
        sessions = []
        for _, head in found:
            if len(head) < record.HEADER.itemsize:
                continue
            header = np.frombuffer(head[: record.HEADER.itemsize], record.HEADER)[0]
            if header["format"] == record.FORMAT and header["kind"] == record.LIVE:
                name = head[record.HEADER.itemsize :][: int(header["name_bytes"])]
                with suppress(UnicodeDecodeError):  # a corrupt record: who asks for it is told
                    sessions.append((name.decode(), header))
        return following, sessions
