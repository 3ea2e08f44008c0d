"""The one thread that runs models on a device."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable
from queue import SimpleQueue
from typing import Any, Final, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_MOST_KNOWN: Final = 4_096
_SHORT_SECONDS: Final = 0.00025  # what takes less is not worth the way to another thread and back, about 0.1 ms


class Device:
    """Runs one thing at a time: on its thread, or, if asked, at once where that is known to be short."""

    def __init__(self, name: str = "device") -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._busy = 0
        self._turn = threading.Lock()
        self._took: dict[Hashable, float] = {}  # seconds, by what was run
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def run(
        self, what: Hashable, function: Callable[[*Ts], T], *arguments: *Ts, at_once: bool = False
    ) -> asyncio.Future[T]:
        """The function's result, or what it raises.

        Args:
            what: runs of the same take the same time.
            at_once: run it here, if it is short and the thread is idle: nobody else comes meanwhile.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        if at_once and not self._busy and self._took.get(what, 1.0) < _SHORT_SECONDS:
            try:
                answer.set_result(self._timed(what, function, *arguments))
            except Exception as error:  # noqa: BLE001 # it is the caller's
                answer.set_exception(error)
            return answer
        self._busy += 1

        def work() -> None:
            try:
                result = self._timed(what, function, *arguments)
            except BaseException as error:  # noqa: BLE001 # it is the caller's
                loop.call_soon_threadsafe(self._tell, answer, None, error)
            else:
                loop.call_soon_threadsafe(self._tell, answer, result, None)

        self._work.put(work)
        return answer

    def now(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """The function's result, here, between two things that are run; what is run before is done by then."""
        with self._turn:
            return function(*arguments)

    def close(self) -> None:
        """End the thread, once what it runs is done."""
        self._work.put(None)
        self._thread.join()

    def _tell(self, answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._busy -= 1
        if answer.done():  # cancelled
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    def _timed(self, what: Hashable, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        with self._turn:
            began = time.perf_counter()
            result = function(*arguments)
        if len(self._took) >= _MOST_KNOWN:  # callers choose shapes
            self._took.clear()
        self._took[what] = time.perf_counter() - began
        return result

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # and with it the batch
