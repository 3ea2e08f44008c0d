"""The model repository: its models loaded into engines that run, and taken away again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from recurra import models
from recurra.server.engine.device import Device
from recurra.server.engine.engine import Engine, Limits
from recurra.server.engine.pool import PoolRunner
from recurra.server.engine.runner import SlabRunner
from recurra.server.engine.seams import Clock, Runner, Store
from recurra.server.served import Served
from recurra.server.settings import Settings
from recurra.server.tasks import owned, stop
from recurra.server.telemetry import Log, Metrics, ModelMetrics
from recurra.server.trials import attempt
from recurra.wire.errors import InvalidArgument, ModelNotFound

_log = Log(__name__)


class Repository:
    """What is in the folder, and the engines of it that are served."""

    def __init__(
        self,
        settings: Settings,
        served: Served,
        store: Store,
        *,
        device: Device,
        clock: Clock,
        metrics: Metrics,
        ending: asyncio.Future[None],
    ) -> None:
        """Once `ending` is done no other model is begun, and a trial is ended."""
        self._settings, self._served, self._store, self._device = settings, served, store, device
        self._clock, self._metrics, self._ending = clock, metrics, ending
        self._running: dict[Engine, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()

    async def load_all(self) -> None:
        """Every model that is not refused yet; why one is refused is noted."""
        for name, folder in models.find(self._settings.models).items():
            if name in self._served.refused:
                continue
            try:
                self._serve(await self._made(name, folder))
            except models.ModelRefused as error:
                if not self._ending.done():
                    self._served.refused[name] = str(error)
                    _log.error("model.refused", model=name, error=error)
            if self._ending.done():
                break

    async def load(self, name: str) -> None:
        """The model's highest version, in place of the one that is served: its sessions go on with it.

        Raises ModelNotFound, InvalidArgument for one that is refused: what was served is served on.
        """
        async with self._changing:
            folder = models.find(self._settings.models).get(name)
            if folder is None:
                raise ModelNotFound(f"no model '{name}' in the repository")
            try:
                engine = await self._made(name, folder)
            except models.ModelRefused as error:
                if name not in self._served.engines:
                    self._served.refused[name] = str(error)
                raise InvalidArgument(f"failed to load '{name}': {error}") from None
            old = self._served.engines.get(name)
            self._serve(engine)
            if old is not None:
                await self._end(old)

    async def unload(self, name: str) -> None:
        """Serve it no more; what is queued is answered, and its sessions stay in the store. Raises ModelNotFound."""
        async with self._changing:
            engine = self._served.engines.pop(name, None)
            if engine is not None:
                await self._end(engine)
            elif self._served.refused.pop(name, None) is None:
                raise ModelNotFound(f"no model '{name}'")

    async def stop(self) -> None:
        """End all engines."""
        await stop(self._running.values())

    def _serve(self, engine: Engine) -> None:
        name = engine.model.name
        self._served.refused.pop(name, None)
        self._served.engines[name] = engine
        self._running[engine] = owned(engine.run(), f"engine of {name}", self._ending)

    async def _end(self, engine: Engine) -> None:
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await engine.drain()
        except TimeoutError:
            _log.warning("drain.cut", model=engine.model.name, seconds=self._settings.drain_seconds)
        await stop([self._running.pop(engine)])
        _log.info("model.unloaded", model=engine.model.name, version=engine.model.version)

    async def _made(self, name: str, folder: Path) -> Engine:
        """Raises ModelRefused."""
        settings, began = self._settings, time.monotonic()
        await attempt(folder, settings, self._ending)
        provider = models.wanted(folder, settings.provider)
        model = await asyncio.to_thread(models.load, folder, provider=provider, threads=settings.threads)
        slots = max(1, min(settings.slots, settings.state_memory_bytes // max(1, model.signature.state_bytes)))
        metrics = self._metrics.for_model(name)
        runner = await asyncio.to_thread(_runner, model, self._device, settings, slots + 1, metrics)
        if settings.cuda_graphs == "on" and isinstance(runner, PoolRunner) and model.program.session.on_gpu:
            _log.info("timesteps.recorded", model=name, failure=await runner.record())
        limits = Limits(queue=settings.queue_limit, slots=slots, checkpoint_seconds=settings.checkpoint_seconds)
        engine = Engine(model, runner, self._store, self._clock, metrics, limits=limits)
        _log.info(
            "model.loaded",
            model=name,
            version=model.version,
            provider=model.providers[0],
            states="device" if isinstance(runner, PoolRunner) else "host",
            slots=slots,
            seconds=round(time.monotonic() - began, 3),
        )
        for stray in model.strays:
            if not stray.sizes:
                _log.warning("node.strayed", model=name, op=stray.op, node=stray.name, reason=stray.reason)
        self._metrics.set_nodes(name, model.nodes, sum(not stray.sizes for stray in model.strays))
        return engine


def _runner(model: models.Model, device: Device, settings: Settings, slots: int, metrics: ModelMetrics) -> Runner:
    """With the states on the device where that is asked for and the graph allows it, else on the host."""
    if settings.states == "device" or (settings.states == "auto" and model.program.session.on_gpu):
        try:
            runner = PoolRunner(model, device, slots=slots, metrics=metrics)
        except models.ModelRefused as error:
            _log.warning("states.on_host", model=model.name, reason=error)
        else:
            for program in filter(None, (model.program, model.ragged)):
                program.session.close()  # it proved the model, and would keep the weights a second time
            return runner
    return SlabRunner(model.signature, model.program, device, slots=slots, ragged=model.ragged, start=model.start)
