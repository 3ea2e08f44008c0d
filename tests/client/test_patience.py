from __future__ import annotations

import pytest

from recurra.client.patience import Chance, Patience
from recurra.wire.errors import DeadlineExceeded, InvalidArgument, Overloaded, Unreachable


class Clock:
    """Time that only sleeping moves."""

    def __init__(self) -> None:
        self.time, self.slept = 0.0, list[float]()

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


def patience(clock: Clock, timeout: float = 30.0, *, spare: int = 0) -> Patience:
    return Patience(Chance(clock, lambda size: b"\xff" * size), timeout, spare=spare)


async def test_waits_double_up_to_two_seconds() -> None:
    clock = Clock()
    waiting = patience(clock)
    while await waiting.pause(Unreachable("")):
        pass
    assert clock.slept[:7] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert set(clock.slept[6:]) == {2.0}
    assert clock.time < 30


async def test_the_server_may_ask_for_more() -> None:
    clock = Clock()
    assert await patience(clock).pause(Overloaded("", retry_after=3.0))
    assert clock.slept == [3.05]


async def test_those_whom_the_server_told_the_same_do_not_come_back_together() -> None:
    slept = []
    for drawn in (b"\x00\x00", b"\x80\x00", b"\xff\xff"):
        clock = Clock()
        assert await Patience(Chance(clock, lambda _, drawn=drawn: drawn), 30.0).pause(Overloaded("", retry_after=3.0))
        slept += clock.slept
    assert min(slept) >= 3.0
    assert len(set(slept)) == 3


async def test_no_wait_goes_past_the_deadline() -> None:
    clock = Clock()
    assert not await patience(clock, 1.0).pause(Overloaded("", retry_after=3.0))
    assert clock.slept == []


async def test_what_cannot_succeed_is_not_tried_again() -> None:
    assert not await patience(Clock()).pause(InvalidArgument(""))


async def test_other_replicas_are_tried_at_once() -> None:
    clock = Clock()
    waiting = patience(clock, spare=2)
    for _ in range(3):
        assert await waiting.pause(Unreachable(""))
    assert clock.slept == [0.0, 0.0, 0.05]


async def test_time_that_ran_out_is_told() -> None:
    clock = Clock()
    waiting = patience(clock, 1.0)
    clock.time = 1.0
    with pytest.raises(DeadlineExceeded):
        _ = waiting.left
