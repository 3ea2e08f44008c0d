from __future__ import annotations

from recurra.client.operation import Operation
from recurra.client.window import Window


def operation(nbytes: int) -> Operation:
    return Operation(b"", "request", nbytes)


def test_the_oldest_is_forgotten_first() -> None:
    window, operations = Window(10), [operation(4) for _ in range(3)]
    for one in operations:
        window.keep(one)
    assert [one.request for one in operations] == [None, "request", "request"]
    assert window.nbytes == 8


def test_one_larger_than_the_window_is_forgotten_at_once() -> None:
    window, small, large = Window(10), operation(1), operation(11)
    window.keep(small)
    window.keep(large)
    assert (small.request, large.request, window.nbytes) == (None, None, 0)


def test_what_is_being_sent_is_held() -> None:
    window, sending = Window(10), operation(11)
    sending.sending = True
    window.keep(sending)
    assert sending.request == "request"
