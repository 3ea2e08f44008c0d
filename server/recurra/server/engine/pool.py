"""The runner on the device's own memory: states stay there, in places that sessions take turns in.

A run reads its sessions' places and writes to free ones, which become theirs when their states are made current: what
fails, or is not kept, leaves everything as it was. A place is free again once it is no session's, and no batch has it.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recurra.models import Model, Pool, PoolProgram
from recurra.models.pool import FIRST, FRESH, Crossed
from recurra.models.pool_program import Result
from recurra.server.engine.device import Device
from recurra.server.engine.rows import Rows, finite, tensors
from recurra.server.engine.seams import Given, States, Step
from recurra.server.telemetry import ModelMetrics

Array = NDArray[Any]
Places = NDArray[np.int64]

_BATCHES: Final = 6  # places beside the slots': what is run, its pieces or timesteps in between, a long chunk's, spares


class Lease:
    """Places that a batch has, until it is gone or a session got them."""

    def __init__(self, places: Places, returned: deque[Places]) -> None:
        self.places, self._mine, self._returned = places, np.ones(len(places), bool), returned

    def give(self, at: NDArray[np.intp]) -> None:
        """Those `at` these positions are a session's from now on."""
        assert self._mine[at].all()
        self._mine[at] = False

    def end(self) -> None:
        """The rest are free."""
        self._returned.append(self.places[self._mine])
        self._mine[:] = False

    def __del__(self) -> None:
        self.end()


class Reading(NamedTuple):
    """States of a batch on their way to the host, and which of them are meant."""

    coming: asyncio.Future[Rows]
    at: NDArray[np.intp]  # in order

    def rows(self) -> Rows:
        """Those that are meant, once they are there; of a whole batch without another copy."""
        found = self.coming.result()
        return found if len(found) == len(self.at) else found[self.at]


class PoolStates:
    """States in the pool; on the host, too, once they are read."""

    __slots__ = ("_at", "_finite", "_lease", "_reading", "_rows", "_runner", "places")

    def __init__(
        self,
        runner: PoolRunner,
        places: Places,
        *,
        lease: Lease | None = None,
        at: NDArray[np.intp] | None = None,
        reading: Reading | None = None,
        rows: Rows | None = None,
        finite: NDArray[np.bool_] | None = None,
    ) -> None:
        """`at`: positions in the lease; without one the places are those of their sessions."""
        self._runner, self.places, self._lease, self._at = runner, places, lease, at
        self._reading, self._rows, self._finite = reading, rows, finite

    def __len__(self) -> int:
        return len(self.places)

    def only(self, rows: NDArray[np.bool_]) -> Self:
        return type(self)(
            self._runner,
            self.places[rows],
            lease=self._lease,
            at=None if self._at is None else self._at[rows],
            reading=None if self._reading is None else self._reading._replace(at=self._reading.at[rows]),
            rows=None if self._rows is None else self._rows[rows],
            finite=None if self._finite is None else self._finite[rows],
        )

    def finite(self) -> NDArray[np.bool_]:
        return np.ones(len(self), bool) if self._finite is None else self._finite

    def fetch(self) -> asyncio.Future[Rows] | None:
        if self._rows is not None:
            return None
        if self._reading is None:
            coming = self._runner.fetch(asyncio.get_running_loop(), self.places, self._lease)
            self._reading = Reading(coming, np.arange(len(self)))
        return self._reading.coming

    def tensors(self) -> list[Array]:
        return tensors(self._runner.specs, self.to_bytes())

    def to_bytes(self) -> Rows:
        if self._rows is None:
            self._rows = self._reading.rows() if self._reading else self._runner.read(self.places)
        return self._rows

    def give(self) -> None:
        """Their sessions have the places from now on."""
        if self._lease is not None and self._at is not None:
            self._lease.give(self._at)


class PoolRunner:
    """A slot's state is at a place in the pool; FRESH is the place of all that have none.

    Attributes:
        places: how many there are, those that no session gets included.
    """

    def __init__(self, model: Model, device: Device, *, slots: int, metrics: ModelMetrics | None = None) -> None:
        """Raises ModelRefused where the graph cannot have its states there."""
        self._device, self._start, self.specs = device, model.start, model.signature.states
        self.places = FIRST + slots + _BATCHES * model.max_batch
        self._pool = Pool(model.signature, model.program.session, self.places)
        self._program = PoolProgram(model.program, self._pool, model.max_batch)
        self._ragged = PoolProgram(model.ragged, self._pool, model.max_batch) if model.ragged else None
        self._on_gpu = model.program.session.on_gpu
        self._stepwise = model.program.layout.stepwise
        self._state_bytes = model.signature.state_bytes
        self._places = np.full(slots, FRESH, np.int64)
        self._free = np.arange(FIRST, self.places)  # of which the first so many are
        self._left = len(self._free)
        self._metrics = metrics
        self._returned: deque[Places] = deque()  # from any thread

    @property
    def crossed(self) -> Crossed:
        """Bytes of states that went over the bus so far."""
        return self._pool.crossed

    @property
    def free(self) -> int:
        """How many places nobody has."""
        return self._left + sum(map(len, self._returned))

    def record(self) -> asyncio.Future[str]:
        """Have single timesteps played as CUDA graphs from now on; empty, or why that cannot be.

        A recording is of the thread that made it.
        """
        return self._device.alone("record", self._program.record)

    def gather(self, slots: Array, given: Sequence[Given] = ()) -> PoolStates:
        places = self._places[slots]
        if not given:
            return PoolStates(self, places)
        brought = np.zeros((len(self.specs), len(slots)), bool)
        for index, here, _ in given:
            brought[index, here] = True
        rows = np.zeros((len(slots), self._state_bytes), np.uint8) if brought.all() else self.read(places)
        columns = tensors(self.specs, rows)
        for index, here, values in given:
            columns[index][here] = values
        return self._put(rows)

    def scatter(self, slots: Array, states: States) -> None:
        assert isinstance(states, PoolStates)
        before = self._places[slots]
        changed = before != states.places
        states.give()
        self._places[slots] = states.places
        # Copies that were begun may still read there.
        self._device.after_copies(partial(self._returned.append, before[changed & (before != FRESH)]))

    def load(self, slots: Array, rows: Rows) -> None:
        # Their old places come first: so many sessions may be loaded at once that there are not twice as many places.
        self.scatter(slots, PoolStates(self, np.full(len(slots), FRESH)))
        self.scatter(slots, self._put(rows))

    def run(
        self,
        inputs: Sequence[Array],
        states: States,
        lengths: Array | None = None,
        *,
        fetch: bool = True,
        alone: bool = False,
    ) -> asyncio.Future[Step]:
        assert isinstance(states, PoolStates)
        program = self._program if lengths is None else self._ragged
        assert program is not None
        leases = [self._lease(len(states)) for _ in range(1 + self._stepwise)]
        what = (id(program), len(states).bit_length(), *(array.shape[1:] for array in inputs))
        places = [states.places, *(lease.places for lease in leases)]
        run = partial(program.run, inputs, places, lengths)
        loop = asyncio.get_running_loop() if fetch else None
        return self._device.run(what, self._step, run, states, leases, loop, at_once=alone and not self._on_gpu)

    def _step(
        self,
        run: Callable[[], Result],
        states: PoolStates,
        leases: Sequence[Lease],
        loop: asyncio.AbstractEventLoop | None,
    ) -> Step:
        """`states` and `leases` are held until it has run: nobody else gets their places. `loop`: to fetch, too."""
        try:
            outputs, sound = run()
        except BaseException:
            for lease in leases:  # the error's traceback has them, for how long nobody knows
                lease.end()
            raise
        lease, at = leases[0], np.arange(len(states))
        reading = Reading(self.fetch(loop, lease.places, lease), at) if loop else None
        return Step(outputs, PoolStates(self, lease.places, lease=lease, at=at, reading=reading, finite=sound))

    def start(self, inputs: Sequence[Array]) -> asyncio.Future[dict[int, Array]]:
        assert self._start is not None
        what = (id(self._start), *(array.shape for array in inputs))
        return self._device.run(what, self._start.run, inputs)

    def fetch(self, loop: asyncio.AbstractEventLoop, places: Places, lease: Lease | None) -> asyncio.Future[Rows]:
        """The states at these places, on the host, (N, state_bytes), while models are run; `lease`: held until then."""
        return self._device.copy(loop, self._read, places, lease)

    def read(self, places: Places) -> Rows:
        """The states at these places, on the host, (N, state_bytes)."""
        return self._device.copy_now(self._read, places)

    def _read(self, places: Places, lease: Lease | None = None) -> Rows:
        del lease
        rows = self._pool.read(places)
        if self._metrics:
            self._metrics.count_state_bytes(to_host=rows.nbytes)
        return rows

    def _write(self, places: Places, rows: Rows) -> None:
        self._pool.write(places, rows)
        if self._metrics:
            self._metrics.count_state_bytes(to_device=rows.nbytes)

    def _put(self, rows: Rows) -> PoolStates:
        """States from the host, at places of their own."""
        lease = self._lease(len(rows))
        self._device.copy_now(self._write, lease.places, rows)
        sound = finite(self.specs, rows)
        return PoolStates(self, lease.places, lease=lease, at=np.arange(len(rows)), rows=rows, finite=sound)

    def _lease(self, count: int) -> Lease:
        self._collect()
        if count > self._left:
            self._device.until_copied()
            self._collect()
        if count > self._left:
            gc.collect()  # errors may have batches in cycles
            self._collect()
        if count > self._left:
            raise MemoryError(f"{count} places for states are wanted, and {self._left} are free")
        self._left -= count
        return Lease(self._free[self._left : self._left + count].copy(), self._returned)

    def _collect(self) -> None:
        while self._returned:
            places = self._returned.popleft()
            self._free[self._left : self._left + len(places)] = places
            self._left += len(places)
