"""The threads of a device: one runs models, one copies states meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Hashable
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_MOST_KNOWN: Final = 4_096
_SHORT_SECONDS: Final = 0.00025  # what takes less is not worth the way to another thread and back, about 0.1 ms


class _Thread:
    """Does one thing after another."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], Callable[[], Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._left = 0  # what was asked for and is not done yet
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._left > 0

    def do(self, work: Callable[[], Callable[[], Any]]) -> None:
        """Call it, and what it gives once it is done."""
        with self._lock:
            self._left += 1
        self._work.put(work)

    def ask(self, loop: asyncio.AbstractEventLoop, function: Callable[[*Ts], T], *arguments: *Ts) -> asyncio.Future[T]:
        """The function's result, or what it raises, told on the event loop."""
        answer: asyncio.Future[T] = loop.create_future()

        def work() -> Callable[[], Any]:
            try:
                result = function(*arguments)
            except BaseException as error:  # noqa: BLE001 # it is the caller's
                return partial(loop.call_soon_threadsafe, _tell, answer, None, error)
            return partial(loop.call_soon_threadsafe, _tell, answer, result, None)

        self.do(work)
        return answer

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            done = work()
            with self._lock:
                self._left -= 1
            with contextlib.suppress(RuntimeError):  # its event loop is closed: nobody waits for it
                done()
            del work, done  # and with them the batch


class Device:
    """Runs one thing at a time: on its thread or, if asked, at once where that is known to be short.

    States are copied there and back meanwhile, to and from places that no run reads or writes: one at a time on a
    thread of their own, and what cannot wait on the caller's.
    """

    def __init__(self, name: str = "device") -> None:
        self._runs, self._copies = _Thread(name), _Thread(f"{name} copies")
        self._running, self._copying, self._at_once = threading.Lock(), threading.Lock(), threading.Lock()
        self._took: dict[Hashable, float] = {}  # seconds, by what was run

    def run(
        self, what: Hashable, function: Callable[[*Ts], T], *arguments: *Ts, at_once: bool = False
    ) -> asyncio.Future[T]:
        """The function's result, or what it raises.

        Args:
            what: runs of the same take the same time.
            at_once: run it here, if it is short and the thread is idle: nobody else comes meanwhile.
        """
        loop = asyncio.get_running_loop()
        if not at_once or self._runs.busy or self._took.get(what, 1.0) >= _SHORT_SECONDS:
            return self._runs.ask(loop, self._timed, what, function, *arguments)
        answer: asyncio.Future[T] = loop.create_future()
        try:
            answer.set_result(self._timed(what, function, *arguments))
        except Exception as error:  # noqa: BLE001 # it is the caller's
            answer.set_exception(error)
        return answer

    def alone(self, what: Hashable, function: Callable[[*Ts], T], *arguments: *Ts) -> asyncio.Future[T]:
        """As run, and nothing is copied meanwhile."""

        def work() -> T:
            with self._copying, self._at_once:
                return function(*arguments)

        return self.run(what, work)

    def copy(self, loop: asyncio.AbstractEventLoop, function: Callable[[*Ts], T], *arguments: *Ts) -> asyncio.Future[T]:
        """What copies states, and its result, or what it raises: after other copies. From any thread."""

        def work() -> T:
            with self._copying:
                return function(*arguments)

        return self._copies.ask(loop, work)

    def copy_now(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """What copies states, here; its result."""
        with self._at_once:
            return function(*arguments)

    def after_copies(self, function: Callable[[], None]) -> None:
        """Call it once the copies that were asked for are done; from their thread, or at once where there are none."""
        if self._copies.busy:
            self._copies.do(lambda: function)
        else:
            function()

    def until_copied(self) -> None:
        """Wait, here, until the copies that were asked for are done, and what was to be called after them was."""
        done = threading.Event()
        self._copies.do(lambda: done.set)
        done.wait()

    def close(self) -> None:
        """End the threads, once what they do is done."""
        self._runs.close()
        self._copies.close()

    def _timed(self, what: Hashable, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        with self._running:
            began = time.perf_counter()
            result = function(*arguments)
        if len(self._took) >= _MOST_KNOWN:  # callers choose shapes
            self._took.clear()
        self._took[what] = time.perf_counter() - began
        return result


def _tell(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():  # cancelled
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
