"""What nothing built on the same parts can go under: the model alone, and gRPC alone."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import grpc.aio
import numpy as np
import onnx
import onnxruntime


def raw_microseconds(model: onnx.ModelProto, batch: int, seconds: float) -> float:
    """CPU microseconds a timestep of ONNX Runtime alone: one thread, one timestep a run, the state not even kept."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(batch, 1, 64)).astype(np.float32)
    for _ in range(20):
        session.run(None, {"x": x})
    runs, began, until = 0, time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < until:
        session.run(None, {"x": x})
        runs += 1
    return (time.process_time() - began) * 1e6 / runs / batch


def _method(behaviour: Callable[[bytes, object], Awaitable[bytes]]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler("bench.Echo", {"Echo": grpc.unary_unary_rpc_method_handler(behaviour)})


async def _echo(request: bytes, context: object) -> bytes:
    del context
    return request


async def serve_echo() -> None:
    """An echo server on a port of its own: prints it, serves until its standard input ends."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_method(_echo),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"ready on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


async def call_echo(address: str, callers: int, seconds: float) -> int:
    """How many 256-byte calls `callers` made in that time."""
    calls, until = 0, time.perf_counter() + seconds
    async with grpc.aio.insecure_channel(address) as channel:
        echo = channel.unary_unary("/bench.Echo/Echo")

        async def caller() -> None:
            nonlocal calls
            while time.perf_counter() < until:
                await echo(bytes(256))
                calls += 1

        await asyncio.gather(*(caller() for _ in range(callers)))
    return calls


if __name__ == "__main__":
    asyncio.run(serve_echo())
