from __future__ import annotations

from recurra.client.linger import Linger


def come(linger: Linger, count: int, now: float) -> None:
    for _ in range(count):
        linger.came(now)


def answer(linger: Linger, count: int, now: float) -> None:
    for _ in range(count):
        linger.answered(now)


def test_one_alone_goes_at_once_again_and_again() -> None:
    linger = Linger(1.0)
    for now in (0.0, 0.1, 9.0):
        linger.came(now)
        assert linger.left(now) == 0
        linger.went(1, 1)
        linger.answered(now)


def test_those_who_were_answered_a_moment_ago_are_waited_for() -> None:
    linger = Linger(1.0)
    come(linger, 3, 0.0)
    linger.went(3, 3)
    answer(linger, 3, 5.0)
    come(linger, 2, 5.1)
    assert linger.left(5.1) > 0
    linger.came(5.2)
    assert linger.left(5.2) == 0


def test_but_no_longer_than_the_linger() -> None:
    linger = Linger(1.0)
    come(linger, 3, 0.0)
    linger.went(3, 3)
    answer(linger, 3, 5.0)
    linger.came(5.4)
    assert abs(linger.left(5.4) - 1.0) < 1e-9
    assert linger.left(6.4) == 0
    linger.went(1, 1)
    linger.answered(6.5)
    linger.came(6.5)
    assert linger.left(6.5) == 0  # the others did not come: they are not waited for again


def test_who_comes_while_more_are_on_their_way_waits_for_them() -> None:
    linger = Linger(1.0)
    come(linger, 5, 0.0)
    linger.went(5, 5)
    linger.came(0.1)
    assert linger.left(0.1) == 1.0
    answer(linger, 5, 0.5)
    assert linger.left(0.5) > 0
    come(linger, 5, 0.6)
    assert linger.left(0.6) == 0


def test_two_groups_of_a_size_do_not_wait_for_each_other() -> None:
    linger = Linger(1.0)
    come(linger, 4, 0.0)
    linger.went(4, 4)
    come(linger, 4, 0.1)
    assert linger.left(0.1) == 0


def test_without_a_linger_nobody_waits() -> None:
    linger = Linger(0.0)
    come(linger, 5, 0.0)
    linger.went(5, 5)
    linger.came(0.1)
    assert linger.left(0.1) == 0
