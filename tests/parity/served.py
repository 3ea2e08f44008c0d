"""Model folders behind one real server, and what its clients get, against the oracles beside them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import numpy as np

from recurra.client import Client, Session
from recurra.models.selftest import compare
from tests.parity.case import CHUNKS, RESET_AFTER, ROWS, Array, Oracle
from tests.service.processes import ServerProcess

_READY_SECONDS: Final = 240.0  # a hundred models, on a machine that does other things too


@contextmanager
def serving(repository: Path) -> Iterator[Client]:
    """A client of a server of all models in `repository`, with the store that it embeds."""
    with tempfile.TemporaryDirectory() as scratch:
        process = ServerProcess(repository, Path(scratch) / "data", "--trial-seconds", "off")
        try:
            with Client(process.start(_READY_SECONDS).address) as client:
                yield client
        finally:
            process.close()


def largest_error(client: Client, folder: Path) -> float:
    """The largest difference of all sessions' replies, of values above 1 relative to them."""
    oracle = Oracle.load(folder)
    assert {spec.name for spec in client.model(folder.name).inputs} == set(oracle.inputs)
    rows = [_replies(client.session(folder.name, uuid4().hex), oracle, row) for row in range(ROWS)]
    names = list(oracle.outputs)
    assert all(set(names) <= row.keys() for row in rows), f"{folder.name} gives {sorted(rows[0])}, not {sorted(names)}"
    error, _ = compare([np.stack([row[name] for row in rows]) for name in names], list(oracle.outputs.values()))
    return error


def _replies(session: Session, oracle: Oracle, row: int) -> dict[str, Array]:
    """All outputs of one session by name, its chunks side by side."""
    timesteps, start, parts = sum(CHUNKS), 0, []
    for index, size in enumerate(CHUNKS):
        if index == RESET_AFTER:
            session.reset(*filter(None, [oracle.reset]))
        chunk = {
            name: array[row, start : start + size] if array.shape[1:2] == (timesteps,) else array[row]
            for name, array in oracle.inputs.items()
        }
        reply = session.predict(chunk)
        parts.append(reply if isinstance(reply, dict) else {next(iter(oracle.outputs)): reply})
        start += size
    return {
        name: (np.concatenate if array.shape[1] == timesteps else np.stack)([part[name] for part in parts])
        for name, array in oracle.outputs.items()
    }
