"""Errors as Triton tells them: its status codes and texts, where it has some; the reason stays in the trailers."""

from __future__ import annotations

from copy import copy

import grpc

from recurra.wire.errors import (
    DeadlineExceeded,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    RecurraError,
    SessionClosed,
    SessionExpired,
    SessionNotFound,
)


def told(
    error: RecurraError, model: str, *, sequence: str = "", version: str = "", timeout: bool = False
) -> RecurraError:
    """The error as Triton's clients know it.

    Args:
        sequence: the request's.
        timeout: the request said how long it may wait.
    """
    code, text = error.code, str(error)
    match error:
        case SessionNotFound() | SessionExpired() | SessionClosed():
            code = grpc.StatusCode.INVALID_ARGUMENT
            text = (
                f"inference request for sequence {sequence} to model '{model}' must specify the START flag on the "
                "first request of the sequence"
            )
        case ModelNotFound():
            code = grpc.StatusCode.INVALID_ARGUMENT
            asked = f"'{model[:64]}'" + (f" version {version[:64]}" if version else "")
            text = f"Request for unknown model: {asked} is not found"
        case ModelUnavailable():
            code = grpc.StatusCode.UNAVAILABLE
            text = f"Request for unknown model: '{model}' has no available versions: {error}"
        case Overloaded():
            code = grpc.StatusCode.UNAVAILABLE
        case DeadlineExceeded() if timeout:
            code, text = grpc.StatusCode.UNAVAILABLE, "Request timeout expired"
    known = copy(error)  # one error may be of many rows
    known.args, known.code = (text,), code
    return known
