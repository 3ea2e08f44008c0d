"""The seam between the SDK's logic and the network: calls and streams of messages, errors in Recurra's own classes."""

# ruff: noqa: ASYNC109 - timeouts are part of every call's surface

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message

from recurra.v1 import inference_pb2, model_pb2, session_pb2

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)
Q_contra = TypeVar("Q_contra", bound=Message, contravariant=True)
A_co = TypeVar("A_co", bound=Message, covariant=True)


@dataclass(frozen=True)
class Method(Generic[Q, A]):
    """One rpc: its path on the wire and the classes of what it takes and gives."""

    path: str
    request: type[Q]
    response: type[A]


class Stream(Protocol[Q_contra, A_co]):
    """One open bidirectional stream. Its calls raise RecurraError; after one did, it is of no more use."""

    async def write(self, message: Q_contra, *, timeout: float) -> None: ...

    async def read(self, *, timeout: float | None) -> A_co:
        """The next message.

        Raises Unreachable where the server ended the stream, DeadlineExceeded after `timeout` seconds; None: never.
        """
        ...

    def cancel(self) -> None:
        """Give the stream up at once; no error, whatever its condition."""
        ...


class Channel(Protocol):
    """A way to one server, or to several that share a store."""

    async def call(self, method: Method[Q, A], request: Q, *, timeout: float) -> A:
        """One attempt at a call, at most `timeout` seconds. Raises RecurraError."""
        ...

    def open(self, method: Method[Q, A]) -> Stream[Q, A]:
        """A stream; whether anybody answers shows at its first write or read."""
        ...

    async def close(self) -> None: ...


_INFERENCE, _SESSION, _MODEL = (f"/recurra.v1.{name}Service/" for name in ("Inference", "Session", "Model"))

PREDICT = Method(_INFERENCE + "Predict", inference_pb2.PredictRequest, inference_pb2.PredictResponse)
STREAM_PREDICT = Method(
    _INFERENCE + "StreamPredict", inference_pb2.StreamPredictRequest, inference_pb2.StreamPredictResponse
)
GET_SESSION = Method(_SESSION + "GetSession", session_pb2.GetSessionRequest, session_pb2.GetSessionResponse)
LIST_SESSIONS = Method(_SESSION + "ListSessions", session_pb2.ListSessionsRequest, session_pb2.ListSessionsResponse)
RESET_STATE = Method(_SESSION + "ResetState", session_pb2.ResetStateRequest, session_pb2.ResetStateResponse)
GET_STATE = Method(_SESSION + "GetState", session_pb2.GetStateRequest, session_pb2.GetStateResponse)
SET_STATE = Method(_SESSION + "SetState", session_pb2.SetStateRequest, session_pb2.SetStateResponse)
END_SESSION = Method(_SESSION + "EndSession", session_pb2.EndSessionRequest, session_pb2.EndSessionResponse)
LIST_MODELS = Method(_MODEL + "ListModels", model_pb2.ListModelsRequest, model_pb2.ListModelsResponse)
GET_MODEL = Method(_MODEL + "GetModel", model_pb2.GetModelRequest, model_pb2.GetModelResponse)
