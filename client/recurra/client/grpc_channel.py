"""The channel over gRPC. The one module that sees grpc, whose errors it translates in one function."""

# ruff: noqa: ASYNC109 - timeouts are part of every call's surface

from __future__ import annotations

import asyncio
from typing import Any, Final, Generic

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from grpc import aio

from recurra.client.channel import A, Method, Q
from recurra.wire.errors import DeadlineExceeded, RecurraError, Unreachable, from_status

Credentials = grpc.ChannelCredentials
_DETAILS: Final = "grpc-status-details-bin"
_MAX_MESSAGE_BYTES: Final = 64 << 20
_OPTIONS: Final = (
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # The SDK retries by itself, by operation id; gRPC shall only connect again soon.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    # A replica that hangs, or a machine that vanished, is left for another within ten seconds.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class GrpcChannel:
    """A channel to one address, connected at its first use, on the event loop that uses it."""

    def __init__(self, target: str, credentials: Credentials | None = None) -> None:
        """`credentials`: for TLS; None: plain text."""
        self._target, self._credentials = target, credentials
        self._channel: aio.Channel | None = None
        self._closed = False

    def _connected(self) -> aio.Channel:
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._channel is None:
            if self._credentials is None:
                self._channel = aio.insecure_channel(self._target, options=_OPTIONS)
            else:
                self._channel = aio.secure_channel(self._target, self._credentials, options=_OPTIONS)
        return self._channel

    async def call(self, method: Method[Q, A], request: Q, *, timeout: float) -> A:
        rpc: Any = self._connected().unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            response: A = await rpc(request, timeout=timeout)
        except aio.AioRpcError as error:
            raise translate(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise RuntimeError("the client was closed meanwhile") from None
            raise
        return response

    def open(self, method: Method[Q, A]) -> GrpcStream[Q, A]:
        rpc: Any = self._connected().stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return GrpcStream(rpc())

    async def close(self) -> None:
        self._closed = True
        if self._channel is not None:
            await self._channel.close()


class GrpcStream(Generic[Q, A]):
    """One gRPC stream."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def write(self, message: Q, *, timeout: float) -> None:
        await self._within(self._call.write(message), timeout)

    async def read(self, *, timeout: float | None) -> A:
        message = await self._within(self._call.read(), timeout)
        if message is aio.EOF:
            raise Unreachable("the server ended the stream; safe to retry")
        response: A = message
        return response

    def cancel(self) -> None:
        self._call.cancel()

    async def _within(self, step: Any, timeout: float | None) -> Any:
        try:
            async with asyncio.timeout(timeout):
                return await step
        except TimeoutError:
            self._call.cancel()
            raise DeadlineExceeded(f"no answer within {timeout:.3g} s; safe to retry") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():  # the stream was, by another task
                raise Unreachable("the stream was given up; safe to retry") from None
            raise
        except aio.AioRpcError as error:
            raise translate(error) from None
        except asyncio.InvalidStateError:
            # The stream ended before this write; its status says why.
            raise await self._ending() from None

    async def _ending(self) -> RecurraError:
        code, details = await self._call.code(), await self._call.details()
        return told(code, details or "", await self._call.trailing_metadata())


def translate(error: aio.AioRpcError) -> RecurraError:
    """The error of Recurra's taxonomy that a gRPC error stands for."""
    return told(error.code(), error.details() or "", error.trailing_metadata())


def told(code: grpc.StatusCode, details: str, trailing: Any) -> RecurraError:
    """The error that a call's final code, details and trailing metadata stand for."""
    for key, value in trailing or ():
        if key == _DETAILS:
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    # A connection that breaks may show as one of these: the call was cut, and nobody refused it.
    cut = "RST_STREAM" in details or details == "Internal error from Core"
    if cut or code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.OK):
        code = grpc.StatusCode.UNAVAILABLE
    number: int = code.value[0]
    return from_status(status_pb2.Status(code=number, message=details or f"the call ended with {code.name}"))
