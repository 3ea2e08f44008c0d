"""A server of the simulation: the servicers, the engine and its seams, in a process that may be stopped or killed."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any, Final

from recurra.server.api.errors import Guard
from recurra.server.api.inference import Inference
from recurra.server.api.models import Models
from recurra.server.api.sessions import Sessions
from recurra.server.engine.engine import Engine, Limits
from recurra.server.served import Served
from recurra.server.telemetry import Metrics
from recurra.v1 import inference_pb2, model_pb2, session_pb2
from tests.simulation import chain
from tests.simulation.loop import Process
from tests.simulation.store import Cluster, Link

EPOCH_SECONDS: Final = 1_700_000_000.0
_SERVICES: Final = [
    service for file in (inference_pb2, session_pb2, model_pb2) for service in file.DESCRIPTOR.services_by_name.values()
]
_METRICS: Final = Metrics()


class Clock:
    """The simulation's time, and how far this machine's clock is off."""

    def __init__(self, ahead_seconds: float) -> None:
        self.ahead_seconds = ahead_seconds

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def time(self) -> float:
        return EPOCH_SECONDS + asyncio.get_running_loop().time() + self.ahead_seconds


class Replica:
    """One life of a server.

    Attributes:
        handlers: by the rpc's path.
    """

    def __init__(
        self,
        name: str,
        cluster: Cluster,
        random: Random,
        model: Any,
        *,
        slots: int,
        checkpoint_seconds: float,
        failures: float,
        ahead_seconds: float,
    ) -> None:
        self.process = Process(name)
        self.link = Link(cluster, random, self.process)
        self.clock = Clock(ahead_seconds)
        self.handlers: dict[str, Any] = {}
        self.engine: Engine | None = None
        self.started = asyncio.Event()
        self.process.begin(self._serve(random, model, slots, checkpoint_seconds, failures))

    @property
    def serving(self) -> bool:
        return self.process.alive and self.started.is_set()

    async def _serve(self, random: Random, model: Any, slots: int, checkpoint_seconds: float, failures: float) -> None:
        runner = chain.Runner(random, slots=slots + 1, failures=failures)
        limits = Limits(queue=512, slots=slots, checkpoint_seconds=checkpoint_seconds)
        self.engine = Engine(model, runner, self.link, self.clock, _METRICS.for_model(model.name), limits=limits)
        self.served = Served({model.name: self.engine})
        guard = Guard(_METRICS)
        for service, servicer in zip(
            _SERVICES, (Inference(self.served), Sessions(self.served), Models(self.served)), strict=True
        ):
            for method, handler in guard.handlers(service, servicer).items():
                self.handlers[f"/{service.full_name}/{method}"] = handler
        self.started.set()
        await self.engine.run()

    def kill(self) -> None:
        """As kill -9: nothing that it does from now on is seen."""
        self.process.kill()
        self.link.close()

    async def drain(self) -> None:
        """As SIGTERM: what was taken is finished, streams end, and then it is gone."""
        assert self.engine is not None
        self.served.stopping.set_result(None)
        try:
            async with asyncio.timeout(5.0):
                await self.engine.drain()
                while self.served.streams:
                    await asyncio.wait(self.served.streams)
        except TimeoutError:
            pass
