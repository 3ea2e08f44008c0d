"""The whole server: store, models, engines and gRPC, started in order and drained in the reverse one."""

from __future__ import annotations

import asyncio
import gc
import importlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from recurra import models
from recurra.inference import service_pb2
from recurra.server import trials
from recurra.server.api import reflected
from recurra.server.api.errors import Guard
from recurra.server.api.inference import Inference
from recurra.server.api.models import Models
from recurra.server.api.sessions import Sessions
from recurra.server.api.triton.servicer import Triton
from recurra.server.engine.device import Device
from recurra.server.repository import Repository
from recurra.server.served import Served
from recurra.server.settings import EMBEDDED, Settings
from recurra.server.store.embedded import EmbeddedStore
from recurra.server.store.sessions import RedisStore
from recurra.server.tasks import owned, stop
from recurra.server.telemetry import Log, Metrics
from recurra.v1 import inference_pb2, model_pb2, session_pb2
from recurra.wire.errors import StoreUnavailable

_HANDSHAKE_MS: Final = 3_000
_PING_MS: Final = 4_000  # the SDK asks every five seconds whether a replica lives
_STREAMS_PER_CONNECTION: Final = 4_096
_METADATA_BYTES: Final = 8 << 10  # of a call; nothing of Recurra's is in there
_WAIT_SECONDS: Final = 2  # of a call that the event loop has no time for: gRPC then ends it, for a tenth of its cost
_LAST_WORDS_SECONDS: Final = 0.5
_log = Log(__name__)

Running = Callable[[Settings, asyncio.Future[None]], AbstractAsyncContextManager[str]]


class Ended(Exception):
    """It was told to stop before it was ready."""


class ProviderUnavailable(RuntimeError):
    """What is to run the models does not work on this machine."""


class SystemClock:
    """Real time."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()


async def serve(settings: Settings, ready: Callable[[str], None], run: Running) -> None:
    """`run` a server until SIGTERM or SIGINT; `ready` is told the address.

    Raises OSError, EmbeddedStoreError or StoreUnavailable if it cannot start, and whatever an engine dies of.
    """
    loop = asyncio.get_running_loop()
    ending: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not ending.done():
            ending.set_result(None)

    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, end)
    with suppress(Ended):
        async with run(settings, ending) as address:
            gc.collect()
            gc.freeze()  # models and modules stay: to look through them again would stop all calls for 20 ms each time
            ready(address)
            await ending
            _log.info("server.stopping", drain_seconds=settings.drain_seconds)


@asynccontextmanager
async def running(
    settings: Settings, ending: asyncio.Future[None], refused: Mapping[str, str] | None = None
) -> AsyncIterator[str]:
    """A server that runs inside the block; gives its address. `ending` fails if the server cannot go on.

    `refused`: models that are known to be no good, and why.
    """
    await chosen(settings)
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        if settings.metrics:
            serving = metrics.serve_metrics(settings.metrics)
            stack.callback(serving.close)
            _log.info("metrics.ready", address=serving.address)
        url = await opened(settings, stack, ending)
        store = RedisStore(
            url,
            timeout_seconds=settings.store_timeout_seconds,
            observe=metrics.observe_store,
            replicas=settings.replicas,
        )
        stack.push_async_callback(store.close)
        await store.ping()
        device = Device()
        stack.callback(device.close)
        served = Served(refused=dict(refused or {}))
        repository = Repository(
            settings, served, store, device=device, clock=SystemClock(), metrics=metrics, ending=ending
        )
        stack.push_async_callback(repository.stop)
        await repository.load_all()
        if ending.done():
            await ending
            raise Ended

        server, statuses = _grpc(settings, served, repository, metrics)
        port = server.add_insecure_port(settings.listen)
        await server.start()
        stack.push_async_callback(_drain, settings, served, server, statuses)
        address = f"{settings.listen.rpartition(':')[0]}:{port}"
        _log.info("server.ready", address=address, models=len(served.engines), refused=len(served.refused))
        yield address


async def chosen(settings: Settings, choose: trials.Choose = models.choose) -> models.Choice:
    """The provider for models that do not name one. Raises ProviderUnavailable where it does not work here."""
    try:
        choice = await asyncio.to_thread(choose, settings.provider)
    except models.ModelRefused as error:
        raise ProviderUnavailable(f"--provider {settings.provider}: {error}") from None
    _log.info("provider.chosen", asked=settings.provider, chosen=choice.provider, reason=choice.reason)
    if settings.devices and choice.provider == "cpu":
        _log.warning("devices.unused", devices=",".join(settings.devices), reason=choice.reason)
    return choice


async def opened(settings: Settings, stack: AsyncExitStack, ending: asyncio.Future[None], *, tied: bool = False) -> str:
    """The store's URL; an embedded one is started, and owned by `stack`. `tied`: see EmbeddedStore.start."""
    if settings.store != EMBEDDED:
        return settings.store
    embedded = await EmbeddedStore.start(settings.data, appendfsync=settings.appendfsync, tied=tied)
    stack.push_async_callback(embedded.stop)
    stack.push_async_callback(stop, [owned(_lost(embedded), "watch over the store", ending)])
    return embedded.url


async def _lost(embedded: EmbeddedStore) -> None:
    await embedded.lost.wait()
    raise StoreUnavailable("the embedded store keeps dying: see valkey.log in its data folder")


def _grpc(
    settings: Settings, served: Served, repository: Repository, metrics: Metrics
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    server = transport(settings.transport)(
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.max_concurrent_streams", _STREAMS_PER_CONNECTION),
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", 2 * _METADATA_BYTES),
            ("grpc.server_max_unrequested_time_in_server", _WAIT_SECONDS),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
            ("grpc.http2.min_ping_interval_without_data_ms", _PING_MS),
            ("grpc.so_reuseport", int(settings.workers > 1)),
        ],
    )
    guard, files = Guard(metrics), (inference_pb2, session_pb2, model_pb2, service_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    changes = repository if settings.model_control == "explicit" and settings.workers == 1 else None
    servicers = (Inference(served), Sessions(served), Models(served), Triton(served, changes))
    for service, servicer in zip(services, servicers, strict=True):
        server.add_registered_method_handlers(service.full_name, guard.handlers(service, servicer))
    statuses = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(statuses, server)
    names = [*(service.full_name for service in services), health.SERVICE_NAME, reflection.SERVICE_NAME]
    described = [*(service.file for service in services), health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR]
    reflection.enable_server_reflection(names, server, pool=reflected.pool(described))
    return server, statuses


def transport(name: str) -> Callable[..., grpc.aio.Server]:
    """What makes the gRPC server. Raises RuntimeError where it is not installed."""
    if name == "grpc":
        return grpc.aio.server
    try:
        native = importlib.import_module("pygrpc_native.aio")
    except ImportError as error:
        raise RuntimeError(f"--transport native needs pip install 'recurra[native]': {error}") from None
    server: Callable[..., grpc.aio.Server] = native.server
    return server


async def _drain(
    settings: Settings, served: Served, server: grpc.aio.Server, statuses: health.aio.HealthServicer
) -> None:
    """Fail health first, finish what is queued and in flight, then let go of the connections."""
    await statuses.enter_graceful_shutdown()
    served.stopping.set_result(None)
    stopping = asyncio.create_task(server.stop(settings.drain_seconds))
    try:
        async with asyncio.timeout(settings.drain_seconds):
            await asyncio.gather(*(engine.drain() for engine in served.engines.values()))
            while served.streams:
                await asyncio.wait(served.streams)
    except TimeoutError:
        _log.warning("drain.cut", seconds=settings.drain_seconds)
    await server.stop(_LAST_WORDS_SECONDS)  # what is open yet watches health, or has been answered
    await stopping
