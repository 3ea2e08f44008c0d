"""An event loop whose time is virtual, whose order is drawn from a seed, and whose processes can be stopped.

Time goes on when nothing is left to do, and then to the next timer at once. What is ready together runs in an order of
the seed's choice. Every task belongs to the process in whose context it was begun.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import base_events, events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from random import Random
from typing import Any, Final

MOST_TURNS: Final = 200_000  # at one moment: more is a loop without end


class Stuck(Exception):
    """Nothing will ever happen any more, or time does not go on."""


class Process:
    """Something that can be stopped, go on, and be killed.

    Attributes:
        alive: not killed; nothing that it does afterwards is seen by anybody.
        stopped: it does nothing, and finds later what has come meanwhile.
    """

    def __init__(self, name: str) -> None:
        self.name, self.alive, self.stopped = name, True, False
        self.tasks: dict[Task, None] = {}
        self._held: list[events.Handle] = []
        self._context = Context()
        self._context.run(OWNER.set, self)

    def __repr__(self) -> str:
        return self.name

    def begin(self, work: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        """A task of this process."""
        return asyncio.get_running_loop().create_task(work, name=name or self.name, context=self._context.copy())

    def hold(self, handle: events.Handle) -> None:
        self._held.append(handle)

    def stop(self) -> None:
        self.stopped = True

    def go_on(self) -> None:
        self.stopped = False
        held, self._held = self._held, []
        asyncio.get_running_loop()._ready.extend(held)

    def kill(self) -> None:
        self.alive = False
        self.go_on()
        for task in [*self.tasks]:
            task.cancel()


OWNER: ContextVar[Process | None] = ContextVar("owner", default=None)


class Future(asyncio.Future):
    """Its place in a set is the same in every run."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._number = more["loop"].number()
        super().__init__(*arguments, **more)

    def __hash__(self) -> int:
        return self._number


class Task(asyncio.Task):
    """As Future; known to its process."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._number = more["loop"].number()
        super().__init__(*arguments, **more)
        context = more.get("context")
        owner = OWNER.get() if context is None else context.get(OWNER)
        if owner is not None:
            owner.tasks[self] = None
            self.add_done_callback(owner.tasks.pop)

    def __hash__(self) -> int:
        return self._number


class Loop(base_events.BaseEventLoop):
    """See the module's words."""

    def __init__(self, random: Random, *, shuffles: bool = True) -> None:
        super().__init__()
        self._made = 0
        self._random, self._shuffles = random, shuffles
        self._now, self._turns = 0.0, 0
        self.set_task_factory(lambda loop, work, **more: Task(work, loop=loop, **more))

    def number(self) -> int:
        self._made += 1
        return self._made

    def time(self) -> float:
        return self._now

    def create_future(self) -> Future:
        return Future(loop=self)

    def _run_once(self) -> None:
        scheduled, ready = self._scheduled, self._ready
        if not ready:
            self._go_on()
        while scheduled and scheduled[0]._when <= self._now:
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            ready.append(timer)
        self._turns += 1
        if self._turns > MOST_TURNS:
            raise Stuck(f"time does not go on at {self._now:.3f} s")
        turn = [*ready]
        ready.clear()
        if self._shuffles and len(turn) > 1:
            self._random.shuffle(turn)
        for handle in turn:
            if handle._cancelled:
                continue
            owner = handle._context.get(OWNER)
            if owner is not None and owner.stopped:
                owner.hold(handle)
            else:
                handle._run()

    def _go_on(self) -> None:
        """To the time of the next timer."""
        scheduled = self._scheduled
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not scheduled and not self._stopping:
            raise Stuck(f"nothing is left to happen at {self._now:.3f} s")
        if scheduled and scheduled[0]._when > self._now:
            self._now, self._turns = scheduled[0]._when, 0

    def _process_events(self, _: Any) -> None:
        raise AssertionError("there are no events but timers")

    def _write_to_self(self) -> None:
        """Called from another thread; there is none."""


class Way:
    """What takes its time and keeps its order."""

    def __init__(self) -> None:
        self._coming: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._last = 0.0

    def send(self, seconds: float, act: Callable[..., object], *arguments: Any) -> None:
        """Act after so many seconds, and after all that was sent before."""
        loop = asyncio.get_running_loop()
        self._last = max(self._last, loop.time() + seconds)
        self._coming.append((act, arguments))
        loop.call_at(self._last, self._came)

    def _came(self) -> None:
        act, arguments = self._coming.popleft()
        act(*arguments)
