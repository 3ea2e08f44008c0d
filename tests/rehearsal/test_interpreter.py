"""Whether Python goes on while states cross the bus: a copy is held until another thread of Python lets it go on."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Final

import numpy as np
import pytest

from tests.parity.pooled import CASES
from tests.rehearsal.states import Pooled, pooled

LONG: Final = 30_000  # milliseconds: how long a copy is held if nobody comes
SHORT: Final = 500


@pytest.fixture(scope="module")
def case() -> Pooled:
    return pooled(CASES / "keras_lstm")


def let_on(shared: ctypes.CDLL, direction: str, milliseconds: int, copying: Callable[[], object]) -> bool:
    """Whether another thread ran between the begin of the first copy in this direction and its end."""
    opened = []

    def other() -> None:
        if shared.standin_await():
            opened.append(shared.standin_open())  # to be here, it has the interpreter

    copying()
    shared.standin_close(direction.encode(), ctypes.c_long(milliseconds))
    thread = threading.Thread(target=other)
    thread.start()
    copying()
    thread.join()
    return opened == [1]


def test_reading_states_lets_other_threads_run(shared: ctypes.CDLL, case: Pooled):
    places = np.arange(2, 6)
    assert let_on(shared, "DtoH", LONG, lambda: case.pool.read(places))


def test_a_run_lets_other_threads_run_while_it_copies(shared: ctypes.CDLL, case: Pooled):
    inputs = case.inputs(3)
    assert let_on(shared, "DtoH", LONG, lambda: case.run(inputs))


def test_feeding_a_run_holds_the_interpreter(shared: ctypes.CDLL, case: Pooled):
    """The runtime's update_inplace does: docs/gpu.md says so. Where this fails, it has learned better."""
    inputs = case.inputs(3)
    assert not let_on(shared, "HtoD", SHORT, lambda: case.run(inputs))


def test_telling_what_a_played_run_gave_holds_the_interpreter(shared: ctypes.CDLL):
    """Its outputs are on the device, and OrtValue.numpy() holds it."""
    recorded = pooled(CASES / "keras_lstm")
    assert recorded.program.record() == ""
    inputs = recorded.inputs(1)
    assert not let_on(shared, "DtoH", SHORT, lambda: recorded.run(inputs))
