"""One run: servers, a store and users in one process, what befalls them, and whether all that they saw was right."""

from __future__ import annotations

import asyncio
import gc
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from unittest.mock import patch

from tests.simulation import chain
from tests.simulation.loop import Loop, Process, Stuck
from tests.simulation.network import Network, Weather
from tests.simulation.oracle import Idle, Stored, Truth, Vague, Violation, unpacked
from tests.simulation.plan import Plan
from tests.simulation.replica import Replica
from tests.simulation.store import Cluster
from tests.simulation.writers import KINDS, Writer

_PATIENCE_SECONDS: Final = 900.0  # of virtual time, for what must come to an end once all is well
_CALM: Final = Weather()


@dataclass
class Report:
    """What one run came to.

    Attributes:
        violation: what must not be, and was.
        wrong: it is a wrong reply or a broken invariant, not an error or a crash.
        trace: what happened, in order.
        seen: how often each kind of thing happened.
    """

    seed: int
    violation: str | None = None
    wrong: bool = False
    trace: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)


class World:
    """See the module's words.

    Attributes:
        healed: nothing befalls anybody any more.
    """

    def __init__(self, seed: int, plan: Plan, random: Random) -> None:
        self.seed, self.plan, self.random = seed, plan, random
        self.report = Report(seed)
        self.healed = False
        self._numbers = 0
        self._lives = 0
        self.processes: list[Process] = []

    def say(self, *words: object) -> None:
        now = asyncio.get_running_loop().time()
        self.report.trace.append(f"{now:9.4f} {' '.join(map(str, words))}")
        self.report.seen[" ".join(map(str, words[:2]))] += 1

    def broke(self, _: Any, context: dict[str, Any]) -> None:
        """Something was raised that nobody waits for; the first tells."""
        error = context.get("exception")
        if isinstance(error, Vague):
            self.report.seen["vague"] += 1
        elif self.report.violation is None:
            self.report.wrong = type(error) is Violation
            self.report.violation = f"{type(error).__name__}: {error}" if error else context["message"]
            self.report.trace += traceback.format_exception(error) if error and not isinstance(error, Violation) else []

    @property
    def asked(self) -> int:
        """How many timesteps were asked for."""
        return self._numbers

    def number(self) -> int:
        """One that nothing else has."""
        self._numbers += 1
        return self._numbers

    def truth(self, name: str) -> Truth:
        plan = self.plan
        doubled = plan.weather.doubled > 0
        truth = Truth(name, self.stored, mortal=plan.mortal, brittle=plan.failures > 0, doubled=doubled)
        self.truths.append(truth)
        return truth

    async def run(self) -> None:
        self.stored = Stored(lambda: self.cluster.lost)
        self.truths: list[Truth] = []
        self.cluster = Cluster(self.random, self.stored.written, self.stored.replicated)
        self.network = Network(self.random, self.plan.weather)
        for _ in range(self.plan.replicas):
            self.network.replicas.append(self._replica())
        self.say("plan", self.plan)
        writers = list(self._writers())
        users = Process("users")
        working = [users.begin(writer.work()) for writer in writers]
        fate = [users.begin(self._fate()), users.begin(self._heartbeat())]
        try:
            done, _ = await asyncio.wait([*working, fate[0]], return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await asyncio.gather(*working)
                settling = [users.begin(writer.settle()) for writer in writers]
                await asyncio.gather(*settling)
            await asyncio.sleep(3 * self.plan.checkpoint_seconds)
            self._look_into_the_store()
        except TimeoutError:
            raise Idle("it does not come to an end, though all is well") from None
        finally:
            fate[1].cancel()
            for process in self.processes:
                process.go_on()

    def _writers(self) -> Iterator[Writer]:
        """The users, each with sessions of his own."""
        for place, (kind, sessions, level) in enumerate(self.plan.users):
            count = sessions if kind in ("Streamer", "Batcher") else 1
            yield KINDS[kind](self, [f"{kind} {place}.{at}" for at in range(count)], level)

    def _look_into_the_store(self) -> None:
        found = {}
        for data, _ in self.cluster.primary.records.values():
            found[unpacked(data).name] = data
        for truth in self.truths:
            if not self.plan.mortal:
                truth.ends_at(found.get(truth.name))

    # ---- what befalls them

    def _replica(self) -> Replica:
        self._lives += 1
        replica = Replica(
            f"replica {self._lives}",
            self.cluster,
            self.random,
            self.plan.model,
            slots=self.plan.slots,
            checkpoint_seconds=self.plan.checkpoint_seconds,
            failures=self.plan.failures,
            ahead_seconds=self.random.choice((0.0, 0.0, 0.3, -0.3)) * self.plan.skewed,
        )
        self.processes.append(replica.process)
        return replica

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self.random.choice((0.01, 0.05, 0.2)))
            self.cluster.catch_up()

    async def _fate(self) -> None:
        """The faults of the plan, one after another, then peace."""
        mending: list[asyncio.Task[None]] = []
        for pause, name in self.plan.faults:
            await asyncio.sleep(pause)
            self.say("FAULT", name)
            mending.append(asyncio.create_task(getattr(self, f"_{name}")()))
        await asyncio.sleep(self.plan.last_seconds)
        await asyncio.gather(*mending)
        self.network.weather = _CALM
        self.network.parted.clear()
        self.cluster.settle()
        self.say("HEALED", "from here on nothing goes wrong")
        self.healed = True

    def _some(self) -> int:
        return self.random.randrange(self.plan.replicas)

    async def _soon(self) -> None:
        await asyncio.sleep(self.random.choice((0.01, 0.1, 0.5, 2.0)))

    async def _kill(self) -> None:
        place = self._some()
        replica = self.network.replicas[place]
        if replica is not None:
            self.network.replicas[place] = None
            replica.kill()
            await self._soon()
            self.network.replicas[place] = self._replica()

    async def _kill_all(self) -> None:
        for _ in range(2 * self.plan.replicas):
            await self._kill()

    async def _stop(self) -> None:
        replica = self.network.replicas[self._some()]
        if replica is not None:
            replica.process.stop()
            await asyncio.sleep(self.random.choice((0.1, 1.0, 3.0, 12.0)))
            replica.process.go_on()

    async def _zombie(self) -> None:
        """Stopped, replaced, and then it goes on for a while."""
        place = self._some()
        replica = self.network.replicas[place]
        if replica is not None:
            replica.process.stop()
            self.network.replicas[place] = self._replica()
            await asyncio.sleep(self.random.choice((0.5, 3.0, 12.0)))
            replica.process.go_on()
            await asyncio.sleep(self.random.choice((0.01, 1.0)))
            replica.kill()

    async def _drain(self) -> None:
        place = self._some()
        replica = self.network.replicas[place]
        if replica is not None and replica.serving and not replica.served.stopping.done():
            self.network.replicas[place] = self._replica()
            await replica.process.begin(replica.drain())
            await asyncio.sleep(self.random.choice((0.01, 0.5)))
            replica.kill()

    async def _cut(self) -> None:
        if self.cluster.links:
            self.random.choice(self.cluster.links).cut()

    async def _part(self) -> None:
        place = self._some()
        self.network.parted.add(place)
        await self._soon()
        self.network.parted.discard(place)

    async def _stall(self) -> None:
        seconds = self.random.choice((0.1, 0.9, 1.5, 4.0))
        self.cluster.stalled_until = asyncio.get_running_loop().time() + seconds
        await asyncio.sleep(seconds)

    async def _full(self) -> None:
        self.cluster.primary.full = True
        await self._soon()
        self.cluster.primary.full = False

    async def _lag(self) -> None:
        self.cluster.lagging = True
        await self._soon()
        self.cluster.lagging = False

    async def _fail_over(self) -> None:
        self.cluster.fail_over()

    async def _lag_and_fail_over(self) -> None:
        self.cluster.lagging = True
        await self._soon()
        self.cluster.fail_over()
        self.cluster.lagging = False

    async def _restart(self) -> None:
        self.cluster.restart(durable=True)

    async def _roll_back(self) -> None:
        self.cluster.restart(durable=False)

    async def _empty(self) -> None:
        self.cluster.restart_empty()

    async def _clock(self) -> None:
        replica = self.network.replicas[self._some()]
        if replica is not None:
            replica.clock.ahead_seconds += self.random.choice((-20.0, -1.0, 1.0, 20.0))


@contextmanager
def _machine(random: Random) -> Iterator[None]:
    """What is asked of the machine itself: random bytes are the seed's, and there is no other thread to yield to."""
    with patch.object(os, "urandom", random.randbytes), patch.object(os, "sched_yield", lambda: None):
        yield


def simulate(seed: int, plan: Callable[[Random], Plan] = Plan.drawn) -> Report:
    """One run."""
    chain.forget()
    random = Random(seed)
    world = World(seed, plan(random), random)
    loop = Loop(Random(random.random()), shuffles=world.plan.shuffles)
    collecting = gc.isenabled()
    gc.disable()  # what it finds, and when, is not the seed's
    loop.set_exception_handler(world.broke)
    try:
        with _machine(random):
            try:
                loop.run_until_complete(world.run())
            except Vague:
                world.report.seen["vague"] += 1
            except Exception as error:  # noqa: BLE001 - a run that cannot go on is a finding too
                world.broke(loop, {"exception": error, "message": ""})
            with suppress(Stuck):
                _end(loop)
    finally:
        loop.close()
        if collecting:
            gc.enable()
    return world.report


def _end(loop: Loop) -> None:
    """Cancel all that is left, until nothing is."""
    for _ in range(20):
        tasks = asyncio.all_tasks(loop)
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))


def failed(report: Report) -> str:
    """A failing run, in words."""
    return "\n".join([*report.trace[-400:], f"seed {report.seed}: {report.violation}", replay(report.seed)])


def replay(seed: int) -> str:
    return f"replay it: make simulate SEED={seed}"
