"""Errors on their way out: one interceptor answers every RPC's error with the taxonomy's code, reason and metadata."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from recurra.server.telemetry import Log, Metrics
from recurra.wire.errors import InvalidArgument, RecurraError, to_status

_LONGEST_MESSAGE: Final = 2_000  # characters: trailers are small
_log = Log(__name__)


class Errors(grpc.aio.ServerInterceptor):
    """Turns what handlers raise into statuses, and counts and times every RPC."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any] | None] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        if method in self._wrapped:
            return self._wrapped[method]
        handler = await continuation(handler_call_details)
        if not method.startswith("/recurra."):
            return handler
        if handler is not None:  # an unknown method has none, and is not remembered: names are the caller's
            handler = self._wrapped[method] = self._wrap(method.rpartition("/")[2], handler)
        return handler

    def _wrap(self, method: str, handler: Any) -> Any:
        behaviour = handler.stream_stream or handler.unary_unary

        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            began, code = time.perf_counter(), grpc.StatusCode.OK
            try:
                return await behaviour(request, context)
            except RecurraError as error:
                code = error.code
                await self._abort(context, error)
            except grpc.aio.AbortError:
                raise
            except DecodeError:  # of a stream's message, parsed when it is read
                code = grpc.StatusCode.INVALID_ARGUMENT
                await self._abort(context, InvalidArgument("the request is not a valid message"))
            except Exception as error:  # noqa: BLE001 # a fault of the server is told, logged, and nobody else's
                code = grpc.StatusCode.INTERNAL
                _log.exception("request.failed", method=method)
                await self._abort(context, RecurraError(f"the server failed on this request: {type(error).__name__}"))
            except BaseException:
                code = grpc.StatusCode.CANCELLED
                raise
            finally:
                self._metrics.observe_request(method, code.name, time.perf_counter() - began)

        make = grpc.stream_stream_rpc_method_handler if handler.stream_stream else grpc.unary_unary_rpc_method_handler
        # Single requests are parsed in here: what a deserialiser raises would reach the caller as UNKNOWN.
        parse = handler.request_deserializer
        if handler.stream_stream:
            return make(guarded, parse, handler.response_serializer)

        async def parsed(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                request = parse(data)
            except Exception:  # noqa: BLE001 # any failure to parse is the caller's
                return await self._abort(context, InvalidArgument("the request is not a valid message"))
            return await guarded(request, context)

        return make(parsed, None, handler.response_serializer)

    async def _abort(self, context: grpc.aio.ServicerContext[Any, Any], error: RecurraError) -> None:
        self._metrics.count_error(error.reason)
        status = to_status(error)
        status.message = status.message[:_LONGEST_MESSAGE]
        await context.abort(error.code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))
