"""The error taxonomy: one class a reason, raised by the server's parts and again, the same, by the SDK.

On the wire an error is a google.rpc.Status with an ErrorInfo (reason, domain, metadata), and a RetryInfo where waiting
helps.
"""

from __future__ import annotations

from contextlib import suppress
from typing import ClassVar, Final

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DOMAIN: Final = "recurra"
MAX_MESSAGE_BYTES: Final = 1_600  # of an error on the wire: gRPC takes 8 KiB of trailers, and the text comes twice


class RecurraError(Exception):
    """Any refusal or failure of an operation. `str(error)` says what is wrong and what to do.

    Attributes:
        reason: the class's name on the wire, upper snake case.
        code: the gRPC status code; another API may tell the same error with one of its own.
        retryable: sending the same operation again, with the same id, may succeed.
        metadata: details by name, as text.
        retry_after: seconds to wait before a retry, where the server knows.

    """

    reason: ClassVar[str] = "INTERNAL"
    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after: float | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.metadata = metadata
        self.retry_after = retry_after


class InvalidArgument(RecurraError):
    """The request is malformed or does not fit the model's signature. No timestep was consumed."""

    reason, code = "INVALID_ARGUMENT", grpc.StatusCode.INVALID_ARGUMENT


class ModelNotFound(RecurraError):
    """No model of this name is in the repository."""

    reason, code = "MODEL_NOT_FOUND", grpc.StatusCode.NOT_FOUND


class ModelUnavailable(RecurraError):
    """The model is in the repository but failed to load; the message says why."""

    reason, code = "MODEL_UNAVAILABLE", grpc.StatusCode.FAILED_PRECONDITION


class ModelChanged(RecurraError):
    """The session's state was written by a version of the model with another state layout."""

    reason, code = "MODEL_CHANGED", grpc.StatusCode.FAILED_PRECONDITION


class SessionNotFound(RecurraError):
    """There is no such session."""

    reason, code = "SESSION_NOT_FOUND", grpc.StatusCode.NOT_FOUND


class SessionExpired(RecurraError):
    """The session's time to live passed."""

    reason, code = "EXPIRED", grpc.StatusCode.NOT_FOUND


class SessionClosed(RecurraError):
    """The session was ended."""

    reason, code = "CLOSED", grpc.StatusCode.FAILED_PRECONDITION


class DataLoss(RecurraError):
    """The store lost the session, or its record is corrupt."""

    reason, code = "DATA_LOSS", grpc.StatusCode.DATA_LOSS


class AlreadyApplied(RecurraError):
    """The operation was applied before, and its reply was too large to keep."""

    reason, code = "ALREADY_APPLIED", grpc.StatusCode.ALREADY_EXISTS


class RunFailed(RecurraError):
    """The model failed on this input. No timestep was consumed."""

    reason, code = "RUN_FAILED", grpc.StatusCode.INTERNAL


class Overloaded(RecurraError):
    """Queues are full; `retry_after` says when to come back."""

    reason, code, retryable = "OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED, True


class StoreFull(RecurraError):
    """The store has no memory left. The session is as it was."""

    reason, code = "STORE_FULL", grpc.StatusCode.RESOURCE_EXHAUSTED


class StoreUnavailable(RecurraError):
    """The store did not answer in time. Unknown whether applied; safe to retry."""

    reason, code, retryable = "STORE_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE, True


class NotReplicated(RecurraError):
    """Too few of the store's replicas have the operation, which may be applied. Safe to retry."""

    reason, code, retryable = "NOT_REPLICATED", grpc.StatusCode.UNAVAILABLE, True


class Owned(RecurraError):
    """A checkpointed stream on another replica owns the session at present. Nothing was applied; safe to retry."""

    reason, code, retryable = "OWNED", grpc.StatusCode.ABORTED, True


class Draining(RecurraError):
    """This replica is shutting down; another one serves. Safe to retry."""

    reason, code, retryable = "DRAINING", grpc.StatusCode.UNAVAILABLE, True


class Unreachable(RecurraError):
    """No replica answered. Unknown whether applied; safe to retry."""

    reason, code, retryable = "UNREACHABLE", grpc.StatusCode.UNAVAILABLE, True


class DeadlineExceeded(RecurraError):
    """Time ran out. Unknown whether applied; safe to retry."""

    reason, code, retryable = "DEADLINE_EXCEEDED", grpc.StatusCode.DEADLINE_EXCEEDED, True


class Unimplemented(RecurraError):
    """This server does not offer that yet."""

    reason, code = "UNIMPLEMENTED", grpc.StatusCode.UNIMPLEMENTED


class Mismatch(RecurraError):
    """The session does not stand where the operation continues it. The attributes say where it stands.

    Attributes:
        last_id: 16 bytes, the id of the session's last operation.
        position: timesteps since the base state.
        incarnation: 16 bytes, the id of this life of the session.

    """

    code = grpc.StatusCode.ABORTED

    @property
    def last_id(self) -> bytes:
        return bytes.fromhex(self.metadata.get("last_id", ""))

    @property
    def position(self) -> int:
        return int(self.metadata.get("position", "0"))

    @property
    def incarnation(self) -> bytes:
        return bytes.fromhex(self.metadata.get("incarnation", ""))


class SessionExists(Mismatch):
    """The operation was to create the session, which exists."""

    reason, code = "SESSION_EXISTS", grpc.StatusCode.ALREADY_EXISTS


class Behind(Mismatch):
    """The session's last operation is not the one that this one continues: replay from there, if it is known."""

    reason = "BEHIND"


class StateReset(Mismatch):
    """Somebody else reset the session or set its state meanwhile."""

    reason = "RESET"


class Diverged(Mismatch):
    """Two histories: this operation id came with another input before, or somebody else advanced the session."""

    reason = "DIVERGED"


class WrongIncarnation(Mismatch):
    """The session was ended and created again since: this is another life of it."""

    reason = "WRONG_INCARNATION"


class Contended(Mismatch):
    """Others kept writing the session while this operation tried to. Safe to retry."""

    reason, retryable = "CONTENDED", True


def _leaves(cls: type[RecurraError]) -> dict[str, type[RecurraError]]:
    found = {cls.reason: cls} if "reason" in vars(cls) else {}
    for sub in cls.__subclasses__():
        found |= _leaves(sub)
    return found


BY_REASON: Final = _leaves(RecurraError)

# Codes that gRPC itself answers with, without an ErrorInfo.
_BY_CODE: Final[dict[int, type[RecurraError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT.value[0]: InvalidArgument,
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: InvalidArgument,  # a message over gRPC's size limit
    grpc.StatusCode.UNAVAILABLE.value[0]: Unreachable,
    grpc.StatusCode.UNIMPLEMENTED.value[0]: Unimplemented,
}


def to_status(error: RecurraError) -> status_pb2.Status:
    """The google.rpc.Status that carries `error`; a text too long for a trailer is cut."""
    text = str(error).encode(errors="replace")
    if len(text) > MAX_MESSAGE_BYTES:
        text = text[: MAX_MESSAGE_BYTES - 3] + b"..."
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details = [_pack(info)]
    if error.retry_after is not None:
        delay = Duration(seconds=int(error.retry_after), nanos=int(error.retry_after % 1 * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=error.code.value[0], message=text.decode(errors="ignore"), details=details)


def from_status(status: status_pb2.Status) -> RecurraError:
    """The error that `status` carries; one that gRPC made itself is classed by its code."""
    cls = _BY_CODE.get(status.code, RecurraError)
    metadata: dict[str, str] = {}
    retry_after = None
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        with suppress(DecodeError):  # what a proxy broke; code and message still stand
            if detail.Unpack(info) and info.domain == DOMAIN:
                cls, metadata = BY_REASON.get(info.reason, cls), dict(info.metadata)
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    error = cls(status.message)
    error.metadata, error.retry_after = metadata, retry_after
    return error


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
