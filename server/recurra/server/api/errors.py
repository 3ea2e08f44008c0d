"""Errors on their way out: every rpc's error becomes a status with the taxonomy's code, reason and metadata."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError

from recurra.server.telemetry import Log, Metrics
from recurra.wire.errors import InvalidArgument, RecurraError, to_status

Context = grpc.aio.ServicerContext[Any, Any]

_LONGEST_MESSAGE: Final = 2_000  # characters: trailers are small
_log = Log(__name__)


class Guard:
    """Stands around every rpc: turns what its handler raises into a status, counts and times it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def handlers(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """The handlers of a service's methods, which are the servicer's. An interceptor would cost every call more."""
        each = {method.name: self._handler(method, getattr(servicer, method.name)) for method in service.methods}
        return grpc.method_handlers_generic_handler(service.full_name, each)

    def _handler(self, method: MethodDescriptor, behaviour: Callable[..., Awaitable[Any]]) -> Any:
        parse = message_factory.GetMessageClass(method.input_type).FromString
        write = message_factory.GetMessageClass(method.output_type).SerializeToString
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(partial(self._guarded, method.name, behaviour), parse, write)

        # Parsed in here: what a deserialiser raises would reach the caller as UNKNOWN.
        async def parsed(data: bytes, context: Context) -> Any:
            return await behaviour(parse(data), context)

        return grpc.unary_unary_rpc_method_handler(partial(self._guarded, method.name, parsed), None, write)

    async def _guarded(
        self, method: str, behaviour: Callable[..., Awaitable[Any]], request: Any, context: Context
    ) -> Any:
        began, code = time.perf_counter(), grpc.StatusCode.OK
        try:
            return await behaviour(request, context)
        except RecurraError as error:
            code = error.code
            await self._abort(context, error)
        except grpc.aio.AbortError:
            raise
        except DecodeError:
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

    async def _abort(self, context: Context, error: RecurraError) -> None:
        self._metrics.count_error(error.reason)
        status = to_status(error)
        status.message = status.message[:_LONGEST_MESSAGE]
        await context.abort(error.code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))
