"""Sessions on their way from the store into slots."""

from __future__ import annotations

from collections import OrderedDict
from itertools import compress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.server.engine.operation import Rows
from recurra.server.engine.seams import Runner, Store
from recurra.server.engine.slots import Slots
from recurra.server.store import record
from recurra.server.telemetry import Log
from recurra.wire.errors import Overloaded, RecurraError

Array = NDArray[Any]

_log = Log(__name__)

_MOST_REPLIES: Final = 4096


class Loader:
    """Fills slots with what the store holds.

    Attributes:
        replies: the kept replies, by slot, of the records read last.
    """

    def __init__(self, slots: Slots, runner: Runner, store: Store, state_bytes: int) -> None:
        """`state_bytes`: of one session of this model."""
        self._slots, self._runner, self._store, self._state_bytes = slots, runner, store, state_bytes
        self.replies: OrderedDict[int, bytes] = OrderedDict()

    async def load(self, slots: Rows, asked: int) -> list[tuple[Rows, RecurraError]]:
        """Read the sessions of these slots in one round trip; a session that is not there gets the fresh state.

        Args:
            asked: the engine's sequence number: operations that came before it may rely on what is read.

        Returns:
            which could not be read, given up again, and why.
        """
        epochs, failed = self._slots.epoch[slots], []
        try:
            found = await self._store.read(self._slots.keys[slots])
        except RecurraError as error:
            found = [error] * len(slots)
        heads = np.zeros(len(slots), record.HEADER)
        states: dict[int, bytes] = {}  # by place
        good = self._slots.epoch[slots] == epochs  # others were given up meanwhile, and are loaded again
        for place in np.flatnonzero(good).tolist():
            try:
                states[place] = self._take(int(slots[place]), found[place], heads[place : place + 1])
            except RecurraError as error:
                good[place] = False
                self._slots.give_up(slots[place : place + 1])
                failed.append((slots[place : place + 1], error))
        if good.any():
            try:
                self._fill(slots[good], [states[place] for place in np.flatnonzero(good).tolist()])
            except Exception as error:  # noqa: BLE001 # such as MemoryError, or the device's: these sessions' alone
                _log.exception("load.failed", sessions=int(good.sum()), error=error)
                self._slots.give_up(slots[good])
                text = f"the sessions' states cannot be put where the model runs: {error}; safe to retry"
                failed.append((slots[good], Overloaded(text, retry_after=1.0)))
            else:
                self._slots.install(slots[good], heads[good], asked)
        return failed

    def _fill(self, slots: Rows, states: list[bytes]) -> None:
        """Put the sessions' states into their slots: the fresh one where a record has none that fits the model."""
        fits = np.array([len(state) == self._state_bytes for state in states])
        fresh = slots[~fits]
        if len(fresh):
            self._runner.scatter(fresh, self._runner.gather(np.zeros(len(fresh), np.intp)))
        if fits.any():
            rows = np.frombuffer(b"".join(compress(states, fits)), np.uint8).reshape(-1, self._state_bytes)
            self._runner.load(slots[fits], rows)

    def _take(self, slot: int, answer: bytes | RecurraError | None, head: Array) -> bytes:
        """Note what the store answered in `head`, (1,) HEADER, and among the replies; the session's state."""
        if isinstance(answer, RecurraError):
            raise answer
        read = None if answer is None else record.unpack(answer, self._slots.identity(slot))
        if read is not None:
            head[:] = read.header
        self.replies[slot] = read.reply if read else b""
        self.replies.move_to_end(slot)
        if len(self.replies) > _MOST_REPLIES:
            self.replies.popitem(last=False)
        return read.state if read else b""
