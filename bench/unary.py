"""Where a unary call's CPU time goes: the same call, answered by ever more of the server, in one process.

    python -m bench.unary [--callers N] [--seconds S] [--repeats R] [--transports grpc native]

echo is gRPC alone, with messages of the call's sizes; messages parses the request and writes a reply; api is the whole
servicer over an engine that answers at once; then the whole server: stateless, commit = false, and committed.
CPU microseconds a call by thread, from /proc; medians of interleaved repeats; "its own" is all but the echo and the
model. Client and server share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import grpc.aio
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import models, processes
from recurra import models as servable
from recurra.server.api.errors import Guard
from recurra.server.api.inference import Inference
from recurra.server.app import running, transport
from recurra.server.engine.operation import Block
from recurra.server.served import Served
from recurra.server.settings import Settings
from recurra.server.store import record
from recurra.server.telemetry import Metrics
from recurra.v1 import inference_pb2, session_pb2
from recurra.wire.tensors import to_tensor

_SERVICE: Final = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_PARTS: Final = ("echo", "messages", "api")
_WHOLE: Final = ("stateless", "what if", "committed")
_X: Final = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
_Y: Final = np.zeros((1, 1, 16), np.float32)
_REPLY: Final = inference_pb2.PredictResponse(
    outputs=[to_tensor(_Y[0], "y")],
    session=session_pb2.Session(
        model="lstm", version="1", session="f" * 12, incarnation=os.urandom(16), last_id=os.urandom(16), position=1000
    ),
)
Figures = dict[str, dict[str, list[float]]]
_REPLY.session.update_time.GetCurrentTime()
_REPLY.session.expire_time.GetCurrentTime()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.unary", description=__doc__)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each load runs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--transports", nargs="+", default=["grpc", "native"])
    parser.add_argument("--serve", nargs=3, metavar=("MODELS", "STORE", "TRANSPORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(_serve(*options.serve))
        return
    figures: Figures = defaultdict(lambda: defaultdict(list))
    console = Console(width=130)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = models.repository(folder / "models", lstm=models.lstm())
        url, store = stack.enter_context(processes.store(folder / "store", append_only="everysec"))
        servers = {name: stack.enter_context(_server(str(repository), url, name)) for name in options.transports}
        for repeat in track(range(1 + options.repeats), "measuring", console=console):
            for transport_, server in servers.items():
                for name in (*_PARTS, *_WHOLE):
                    row = figures[f"{transport_} {name}"] if repeat else defaultdict(list)  # the first warms up
                    _measure(row, server, store, name, options)
    console.print(_table(figures, options.callers))


def _measure(row: dict[str, list[float]], server: _Server, store: int, name: str, options: argparse.Namespace) -> None:
    before, batches = server.used() | {"store": processes.cpu_microseconds(store)}, server.batches()
    latencies = asyncio.run(_load(server.addresses[name], name, options.callers, options.seconds))
    after = server.used() | {"store": processes.cpu_microseconds(store)}
    for part, used in after.items():
        row[part].append((used - before[part]) / len(latencies))
    row["a batch"].append(len(latencies) / max(1, server.batches() - batches) if name in _WHOLE else 0)
    row["calls/s"].append(len(latencies) / options.seconds)
    row["p50 ms"].append(median(latencies) * 1e3)


class _Server(NamedTuple):
    """Where each load goes, and what tells the server's figures."""

    addresses: dict[str, str]
    metrics: str
    device: int
    pid: int

    def used(self) -> dict[str, float]:
        """CPU microseconds by thread so far."""
        used = {"event loop": 0.0, "model": 0.0, "gRPC": 0.0}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            name = {self.pid: "event loop", self.device: "model"}.get(int(task.name), "gRPC")
            with suppress(FileNotFoundError):  # a thread that answered for the metrics
                used[name] += int((task / "schedstat").read_text().split()[0]) / 1e3
        return used | {"server": sum(used.values())}

    def batches(self) -> float:
        """How many batches were run so far."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics") as page:
            return float(re.search(r'recurra_batch_size_count{model="lstm"} (\S+)', page.read().decode())[1])


@contextmanager
def _server(repository: str, url: str, transport_: str) -> Iterator[_Server]:
    command = [sys.executable, "-m", "bench.unary", "--serve", repository, url, transport_]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        parts, whole, metrics, device = process.stdout.readline().split()
        addresses = {**dict.fromkeys(_PARTS, parts), **dict.fromkeys(_WHOLE, whole)}
        yield _Server(addresses, metrics, int(device), process.pid)


def _table(figures: Figures, callers: int) -> Table:
    table = Table(title=f"CPU µs a unary call, {callers} callers (medians)")
    columns = ("server", "event loop", "model", "gRPC", "store", "a batch", "calls/s", "p50 ms")
    for name in ("", "server", "x echo", "its own", *columns[1:]):
        table.add_column(name, justify="left" if not name else "right")
    middle = {name: {column: median(row[column]) for column in columns} for name, row in figures.items()}
    for name, row in middle.items():
        spread = f"{row['server']:.0f} ({min(figures[name]['server']):.0f}-{max(figures[name]['server']):.0f})"
        echo = middle[f"{name.split()[0]} echo"]["server"]
        own = f"{row['server'] - row['model'] - echo:.0f}"
        table.add_row(name, spread, f"{row['server'] / echo:.2f}", own, *(f"{row[c]:,.1f}" for c in columns[1:]))
    return table


# ---- the client


async def _load(address: str, name: str, callers: int, seconds: float) -> list[float]:
    """Each caller calls again as soon as it is answered. Answers seconds a call."""
    prefix, until, latencies = os.urandom(4).hex(), time.perf_counter() + seconds, []
    method = f"/bench/{name}" if name in ("echo", "messages") else f"/{_SERVICE.full_name}/Predict"
    async with grpc.aio.insecure_channel(address) as channel:
        predict = channel.unary_unary(
            method,
            request_serializer=inference_pb2.PredictRequest.SerializeToString,
            response_deserializer=inference_pb2.PredictResponse.FromString,
        )

        async def caller(index: int) -> None:
            request = inference_pb2.PredictRequest(model="lstm", inputs=[to_tensor(_X)])
            last = b""
            if name != "stateless":
                request.session = f"{prefix}-{index:03}"
            if name == "what if":  # one that names what it continues: others read the store first
                request.operation.id = last = os.urandom(16)
                await predict(request)
                request.options.commit = False
            while (began := time.perf_counter()) < until:
                new = os.urandom(16)
                request.operation.CopyFrom(session_pb2.Operation(id=new, after=last))
                await predict(request)
                latencies.append(time.perf_counter() - began)
                last = new if name == "committed" else last

        await asyncio.gather(*(caller(index) for index in range(callers)))
    return latencies


# ---- the server


class _Instant:
    """An engine that answers at once."""

    def __init__(self, model: servable.Model) -> None:
        self.model = model
        self._headers = np.zeros(1, record.HEADER)

    def slot(self, session: str) -> int:
        return len(session)

    def submit(self, block: Block) -> None:
        block.answer(block.waiting, [_Y], [], self._headers)


async def _serve(repository: str, store: str, transport_: str) -> None:
    """The parts on one port, the whole server on another: prints where, and the model's thread; ends with its input."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ["--models", repository, "--store", store, "--listen", "127.0.0.1:0", "--provider", "cpu"]
    settings = Settings.parse([*flags, "--metrics", metrics, "--transport", transport_], {})
    loop = asyncio.get_running_loop()
    async with running(settings, loop.create_future()) as address:
        model = servable.load(Path(repository) / "lstm", provider="cpu")
        parts = transport(settings.transport)()
        for service, handlers in _parts(model).items():
            parts.add_registered_method_handlers(service, handlers)
        port = parts.add_insecure_port("127.0.0.1:0")
        await parts.start()
        await _load(address, "committed", 1, 0.2)
        device = next(thread.native_id for thread in threading.enumerate() if thread.name.startswith("device"))
        sys.stdout.write(f"127.0.0.1:{port} {address} {metrics} {device}\n")
        sys.stdout.flush()
        await loop.run_in_executor(None, sys.stdin.read)
        await parts.stop(0)


def _parts(model: servable.Model) -> dict[str, dict[str, Any]]:
    """The handlers of what is part of the server, by service and method."""
    reply = _REPLY.SerializeToString()
    guard, inference = Guard(Metrics()), Inference(Served({"lstm": _Instant(model)}))  # type: ignore[dict-item]

    async def echo(request: bytes, context: object) -> bytes:
        del request, context
        return reply

    async def messages(request: bytes, context: object) -> bytes:
        del context
        inference_pb2.PredictRequest.FromString(request)
        return _REPLY.SerializeToString()

    each: dict[str, Callable[..., Any]] = {"echo": echo, "messages": messages}
    methods = {name: grpc.unary_unary_rpc_method_handler(behaviour) for name, behaviour in each.items()}
    return {"bench": methods, _SERVICE.full_name: guard.handlers(_SERVICE, inference)}


if __name__ == "__main__":
    main()
