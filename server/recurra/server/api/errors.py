"""Errors on their way out: every rpc's error becomes a status with the taxonomy's code, reason and metadata."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
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

    def handlers(self, service: ServiceDescriptor, servicer: object) -> dict[str, Any]:
        """By name the handlers of a service's methods, which are the servicer's. An interceptor would cost more."""
        return {method.name: self._handler(method, getattr(servicer, method.name)) for method in service.methods}

    def _handler(self, method: MethodDescriptor, behaviour: Callable[..., Awaitable[Any]]) -> Any:
        """One coroutine around the servicer's: each is paid for by every call."""
        name, streams, observe = method.name, method.client_streaming, self._metrics.observe_request
        parse = message_factory.GetMessageClass(method.input_type).FromString
        write = message_factory.GetMessageClass(method.output_type).SerializeToString

        async def guarded(request: Any, context: Context) -> Any:
            began, code = time.perf_counter(), "OK"
            try:
                # Parsed in here: what a deserialiser raises would reach the caller as UNKNOWN.
                return await behaviour(request if streams else parse(request), context)
            except (
                grpc.aio.InternalError
            ):  # a write that nobody is there to take: the client went, and that is no fault
                code = "CANCELLED"
                raise asyncio.CancelledError from None
            except Exception as error:  # noqa: BLE001 # see _told
                told = _told(error, name)
                code, ending = told.code.name, self._aborted(context, told)
                del (
                    request,
                    context,
                )  # the call keeps what ends it, and so this frame: only the collector would free both
                await ending
            except BaseException:
                code = "CANCELLED"
                raise
            finally:
                observe(name, code, time.perf_counter() - began)

        if streams:
            return grpc.stream_stream_rpc_method_handler(guarded, parse, write)
        return grpc.unary_unary_rpc_method_handler(guarded, None, write)

    def _aborted(self, context: Context, error: RecurraError) -> Awaitable[None]:
        """To be awaited: the call ends with this error."""
        self._metrics.count_error(error.reason)
        status = to_status(error)
        status.message = status.message[:_LONGEST_MESSAGE]
        return context.abort(error.code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))


def _told(error: Exception, method: str) -> RecurraError:
    """What the caller is told; a fault of the server is logged, and nobody else's."""
    if not isinstance(error, RecurraError | DecodeError):
        _log.exception("request.failed", method=method)
    # Frames hold the request, and some of them what holds the error: only the collector would free that.
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = error.__context__ = None
    if isinstance(error, RecurraError):
        return error
    if isinstance(error, DecodeError):
        return InvalidArgument("the request is not a valid message")
    return RecurraError(f"the server failed on this request: {type(error).__name__}")
