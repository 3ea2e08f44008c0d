"""What nothing built on the same parts can go under: the model alone, gRPC alone, the store alone."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator

import grpc.aio
import numpy as np
import onnx
import redis
from onnxruntime import InferenceSession, SessionOptions

from bench.loads import Done


def raw(model: onnx.ModelProto) -> InferenceSession:
    """ONNX Runtime alone, on one thread."""
    options = SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


async def run(session: InferenceSession, batch: int, until: float) -> Done:
    """One timestep a run of so many sessions at once; states, if they are inputs, are zeros and not even kept."""
    random, feeds = np.random.default_rng(0), {}
    for port in session.get_inputs():
        shape = [batch, *(1 if size == "time" else size for size in port.shape[1:])]
        feeds[port.name] = (random.normal(size=shape) if port.name == "x" else np.zeros(shape)).astype(np.float32)
    done = Done()
    while (began := time.perf_counter()) < until:
        session.run(None, feeds)
        done.count(batch, began)
    return done


async def unary(address: str, callers: int, size: int, until: float) -> Done:
    """So many callers, each with one call of `size` bytes after another."""
    done, message = Done(), bytes(size)
    async with grpc.aio.insecure_channel(address) as channel:
        echo = channel.unary_unary("/bench.Echo/Unary")

        async def caller() -> None:
            while (began := time.perf_counter()) < until:
                await echo(message)
                done.count(1, began)

        await asyncio.gather(*(caller() for _ in range(callers)))
    return done


async def stream(address: str, in_flight: int, size: int, until: float) -> Done:
    """One stream with so many messages of `size` bytes on their way."""
    done, message, sent = Done(), bytes(size), []
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream("/bench.Echo/Stream")()
        for _ in range(in_flight):
            sent.append(time.perf_counter())
            await call.write(message)
        while sent:
            await call.read()
            done.count(1, sent.pop(0))
            if (now := time.perf_counter()) < until:
                sent.append(now)
                await call.write(message)
        await call.done_writing()
    return done


async def sets(url: str, rows: int, size: int, until: float) -> Done:
    """SETs of `size` bytes by redis-py, `rows` in a pipeline."""
    done, value = Done(), bytes(size)
    with redis.Redis.from_url(url) as store:
        while (began := time.perf_counter()) < until:
            pipeline = store.pipeline(transaction=False)
            for row in range(rows):
                pipeline.set(f"floor-{row}", value)
            pipeline.execute()
            done.count(rows, began)
        store.delete(*(f"floor-{row}" for row in range(rows)))
    return done


async def _unary(request: bytes, context: object) -> bytes:
    del context
    return request


async def _stream(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
    del context
    async for request in requests:
        yield request


async def serve() -> None:
    """An echo server on a port of its own: prints it, serves until it is terminated."""
    server = grpc.aio.server()
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(_unary),
        "Stream": grpc.stream_stream_rpc_method_handler(_stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"ready on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve())
