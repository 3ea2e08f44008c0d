"""What a step costs over Triton's protocol beside recurra.v1, by one server in one run.

    python -m bench.triton [--callers N] [--seconds S] [--repeats R]

Each caller has one session, or sequence, and calls again as soon as it is answered; a stream has all of them. CPU
microseconds a step of the server alone, from /proc/PID/stat; medians of interleaved repeats. Client, server and store
share the machine: trust the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import grpc.aio
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import models, processes
from recurra.inference import service_pb2
from recurra.v1 import inference_pb2, session_pb2
from recurra.wire.tensors import to_tensor

_X: Final = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
_SERVICE: Final = "/inference.GRPCInferenceService/"
_BASE: Final = "Predict"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.triton", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each load runs")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    figures: dict[tuple[int, str], list[float]] = defaultdict(list)
    console = Console(width=130)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        repository = models.repository(folder / "models", lstm=models.lstm())
        with (
            processes.store(folder / "store", append_only="everysec") as (url, _),
            processes.server(repository, url) as (address, server),
        ):
            for repeat in track(range(1 + options.repeats), "measuring", console=console):
                for callers in options.callers:
                    for name, load in _LOADS.items():
                        before = processes.cpu_microseconds(server)
                        steps = asyncio.run(_run(address, load, callers, options.seconds))
                        if repeat:  # the first warms up
                            figures[callers, name].append((processes.cpu_microseconds(server) - before) / steps)
    console.print(_table(figures))


def _table(figures: dict[tuple[int, str], list[float]]) -> Table:
    table = Table(title="the server's CPU µs a step (medians)")
    for name in ("callers", "", "CPU µs", f"x {_BASE}"):
        table.add_column(name, justify="right")
    for (callers, name), each in figures.items():
        ratio = median(each) / median(figures[callers, _BASE])
        table.add_row(str(callers), name, f"{median(each):.0f} ({min(each):.0f}-{max(each):.0f})", f"{ratio:.2f}")
    return table


Load = Callable[[grpc.aio.Channel, list[str], float], Awaitable[int]]


async def _run(address: str, load: Load, callers: int, seconds: float) -> int:
    """How many steps it did."""
    prefix = os.urandom(4).hex()
    async with grpc.aio.insecure_channel(address) as channel:
        return await load(channel, [f"{prefix}-{row:03}" for row in range(callers)], time.perf_counter() + seconds)


async def _predict(channel: grpc.aio.Channel, names: list[str], until: float) -> int:
    call = channel.unary_unary(
        "/recurra.v1.InferenceService/Predict",
        request_serializer=inference_pb2.PredictRequest.SerializeToString,
        response_deserializer=inference_pb2.PredictResponse.FromString,
    )

    async def caller(name: str) -> int:
        steps, last = 0, b""
        request = inference_pb2.PredictRequest(model="lstm", session=name, inputs=[to_tensor(_X)])
        while time.perf_counter() < until:
            new = os.urandom(16)
            request.operation.CopyFrom(session_pb2.Operation(id=new, after=last))
            await call(request)
            last, steps = new, steps + 1
        return steps

    return sum(await asyncio.gather(*(caller(name) for name in names)))


async def _infer(channel: grpc.aio.Channel, names: list[str], until: float) -> int:
    call = channel.unary_unary(
        _SERVICE + "ModelInfer",
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )

    async def caller(name: str) -> int:
        steps, request = 0, _request(name)
        while time.perf_counter() < until:
            request.parameters["sequence_start"].bool_param = not steps
            await call(request)
            steps += 1
        return steps

    return sum(await asyncio.gather(*(caller(name) for name in names)))


async def _stream(channel: grpc.aio.Channel, names: list[str], until: float) -> int:
    """One step of each sequence in flight."""
    call: Any = channel.stream_stream(
        _SERVICE + "ModelStreamInfer",
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )
    requests, steps = [_request(name) for name in names], 0
    answered: asyncio.Queue[int] = asyncio.Queue()
    for row in range(len(names)):
        answered.put_nowait(row)

    async def source() -> AsyncIterator[service_pb2.ModelInferRequest]:
        sent = 0
        while time.perf_counter() < until:
            row = await answered.get()
            requests[row].parameters["sequence_start"].bool_param = sent < len(names)
            yield requests[row]
            sent += 1

    async for reply in call(source()):
        if reply.error_message:
            raise RuntimeError(reply.error_message)
        answered.put_nowait(steps % len(names))  # replies come in the order of the requests
        steps += 1
    return steps


def _request(name: str) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="lstm", raw_input_contents=[_X.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[1, *_X.shape])
    request.parameters["sequence_id"].string_param = name
    request.parameters["sequence_start"].bool_param = True
    request.parameters["sequence_end"].bool_param = False
    return request


_LOADS: Final[dict[str, Load]] = {_BASE: _predict, "ModelInfer": _infer, "ModelStreamInfer": _stream}


if __name__ == "__main__":
    main()
