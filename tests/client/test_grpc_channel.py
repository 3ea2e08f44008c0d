from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from recurra.client.grpc_channel import translate
from recurra.wire.errors import BY_REASON, RecurraError, Unreachable, to_status


def failure(code: grpc.StatusCode, details: str = "", trailing: Metadata | None = None) -> AioRpcError:
    return AioRpcError(code, Metadata(), trailing or Metadata(), details)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_code_is_an_error_of_the_taxonomy(code: grpc.StatusCode) -> None:
    error = translate(failure(code))
    assert isinstance(error, RecurraError)
    assert str(error)
    assert BY_REASON[error.reason] is type(error)


@pytest.mark.parametrize("cls", BY_REASON.values())
def test_every_reason_comes_back_as_its_class(cls: type[RecurraError]) -> None:
    told = cls("what is wrong", position="7", retry_after=1.5)
    trailing = Metadata(("grpc-status-details-bin", to_status(told).SerializeToString()))
    error = translate(failure(cls.code, "what is wrong", trailing))
    assert type(error) is cls
    assert (str(error), error.metadata, error.retry_after) == ("what is wrong", {"position": "7"}, 1.5)


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
        (grpc.StatusCode.CANCELLED, ""),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
    ],
)
def test_a_connection_that_breaks_is_worth_another_attempt(code: grpc.StatusCode, details: str) -> None:
    assert isinstance(translate(failure(code, details)), Unreachable)


def test_details_that_cannot_be_read_leave_the_code() -> None:
    trailing = Metadata(("grpc-status-details-bin", b"\xff\xff"))
    assert isinstance(translate(failure(grpc.StatusCode.UNAVAILABLE, "gone", trailing)), Unreachable)
