"""The API as a test calls it: arrays in and out, RecurraErrors raised, nothing retried and nothing remembered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Self

import grpc
import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray

from recurra.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc, session_pb2, session_pb2_grpc
from recurra.wire.errors import RecurraError, from_status
from recurra.wire.tensors import to_array, to_tensor

Array = NDArray[Any]
Arrays = Array | Mapping[str, Array]

TIMEOUT_SECONDS = 30.0
BIG = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
OWN = [
    *BIG,
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
]


def new_id() -> bytes:
    """The name of a new operation."""
    return os.urandom(16)


def translated(error: grpc.RpcError) -> RecurraError:
    """What the server told, or what gRPC itself did."""
    status = rpc_status.from_call(error)
    return from_status(status or status_pb2.Status(code=error.code().value[0], message=error.details()))


def operation(
    id: bytes = b"",  # noqa: A002  # the name on the wire
    after: bytes = b"",
    *,
    create: int = session_pb2.CREATE_UNSPECIFIED,
    ttl: float | None = None,
    expire: Timestamp | None = None,
) -> session_pb2.Operation:
    """`ttl` in seconds; `expire`: what the last reply told."""
    ttl_ = None if ttl is None else Duration(seconds=int(ttl), nanos=int(ttl % 1 * 1e9))
    return session_pb2.Operation(id=id, after=after, create=create, ttl=ttl_, expire_time=expire)


def tensors(arrays: Arrays | None) -> list[Any]:
    if arrays is None:
        return []
    named = arrays if isinstance(arrays, Mapping) else {"": arrays}
    return [to_tensor(np.asarray(array), name) for name, array in named.items()]


@dataclass(frozen=True)
class Reply:
    """A PredictResponse as arrays."""

    raw: inference_pb2.PredictResponse

    @property
    def y(self) -> Array:
        return to_array(self.raw.outputs[0])

    @property
    def states(self) -> dict[str, Array]:
        return {tensor.name: to_array(tensor) for tensor in self.raw.states}

    @property
    def session(self) -> session_pb2.Session:
        return self.raw.session

    @property
    def id(self) -> bytes:
        return self.raw.session.last_id

    @property
    def position(self) -> int:
        return self.raw.session.position

    @property
    def duplicate(self) -> bool:
        return self.raw.duplicate


class Caller:
    """A client of one server."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, OWN)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(self.channel)
        self.models = model_pb2_grpc.ModelServiceStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def call(self, method: Callable[..., Any], request: Message, timeout: float = TIMEOUT_SECONDS) -> Any:
        """One call; raises RecurraError."""
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise translated(error) from None

    def predict(self, model: str, session: str, x: Arrays, *, timeout: float = TIMEOUT_SECONDS, **more: Any) -> Reply:
        """See `request` for `more`."""
        return Reply(self.call(self.inference.Predict, request(model, session, x, **more), timeout))

    def send(self, model: str, session: str, x: Arrays, **more: Any) -> Pending:
        """As predict, but answered later."""
        return Pending(self.inference.Predict.future(request(model, session, x, **more), timeout=TIMEOUT_SECONDS))

    def get(self, model: str, session: str) -> session_pb2.Session:
        return self.call(self.sessions.GetSession, session_pb2.GetSessionRequest(model=model, session=session)).session

    def state(self, model: str, session: str) -> dict[str, Array]:
        asked = session_pb2.GetStateRequest(model=model, session=session)
        return {tensor.name: to_array(tensor) for tensor in self.call(self.sessions.GetState, asked).states}

    def set_state(self, model: str, session: str, states: Mapping[str, Array], **more: Any) -> session_pb2.Session:
        asked = session_pb2.SetStateRequest(
            model=model, session=session, states=tensors(states), operation=operation(**more)
        )
        return self.call(self.sessions.SetState, asked).session

    def reset(self, model: str, session: str, *states: str, **more: Any) -> session_pb2.Session:
        """Reset one session; raises what it was refused with."""
        values = more.pop("values", None)
        [result] = self.reset_many(model, [session], *states, values=values, operations=[operation(**more)])
        if isinstance(result, RecurraError):
            raise result
        return result

    def reset_many(
        self,
        model: str,
        sessions: Sequence[str],
        *states: str,
        values: Mapping[str, Array] | None = None,
        operations: Sequence[session_pb2.Operation] = (),
    ) -> list[session_pb2.Session | RecurraError]:
        asked = session_pb2.ResetStateRequest(
            model=model, sessions=sessions, states=states, values=tensors(values), operations=operations
        )
        results = self.call(self.sessions.ResetState, asked).results
        return [from_status(result.status) if result.HasField("status") else result.session for result in results]

    def end(self, model: str, session: str, **more: Any) -> session_pb2.Session:
        asked = session_pb2.EndSessionRequest(model=model, session=session, operation=operation(**more))
        return self.call(self.sessions.EndSession, asked).session

    def page(self, model: str, size: int = 0, token: str = "") -> session_pb2.ListSessionsResponse:
        asked = session_pb2.ListSessionsRequest(model=model, page_size=size, page_token=token)
        return self.call(self.sessions.ListSessions, asked)

    def model(self, name: str) -> model_pb2.Model:
        return self.call(self.models.GetModel, model_pb2.GetModelRequest(model=name)).model

    def stream(self, model: str, sessions: Sequence[str] = ()) -> Stream:
        """A stream with `sessions` bound to the handles 0, 1, ..."""
        stream = Stream(self)
        stream.bind(sessions, model=model)
        return stream


def request(
    model: str,
    session: str,
    x: Arrays,
    *,
    initial: Mapping[str, Array] | None = None,
    start: Arrays | None = None,
    mask: Iterable[int] = (),
    return_states: bool = False,
    return_sequences: bool | None = None,
    commit: bool | None = None,
    durability: inference_pb2.Durability.ValueType = inference_pb2.DURABILITY_UNSPECIFIED,
    **more: Any,
) -> inference_pb2.PredictRequest:
    """A PredictRequest; `more` goes to `operation`."""
    return inference_pb2.PredictRequest(
        model=model,
        session=session,
        operation=operation(**more),
        inputs=tensors(x),
        initial_state=tensors(initial),
        start_inputs=tensors(start),
        mask=bytes(mask),
        options=inference_pb2.PredictOptions(
            return_states=return_states, return_sequences=return_sequences, commit=commit, durability=durability
        ),
    )


class Pending:
    """A predict on its way."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def reply(self) -> Reply:
        """Raises RecurraError."""
        try:
            return Reply(self.call.result())
        except grpc.RpcError as error:
            raise translated(error) from None

    def outcome(self) -> Reply | RecurraError:
        try:
            return self.reply()
        except RecurraError as error:
            return error


@dataclass(frozen=True)
class FrameReply:
    """A FrameResult as arrays; `errors` by row."""

    raw: inference_pb2.FrameResult

    @property
    def tag(self) -> int:
        return self.raw.tag

    @property
    def y(self) -> Array:
        return to_array(self.raw.outputs[0])

    @property
    def states(self) -> dict[str, Array]:
        return {tensor.name: to_array(tensor) for tensor in self.raw.states}

    @property
    def positions(self) -> list[int]:
        return np.frombuffer(self.raw.positions, "<u8").tolist()

    @property
    def errors(self) -> dict[int, RecurraError]:
        return {error.row: from_status(error.status) for error in self.raw.errors}

    @property
    def refused(self) -> RecurraError | None:
        """Why the whole frame was refused, if it was."""
        return from_status(self.raw.status) if self.raw.HasField("status") else None


class Stream:
    """A StreamPredict call."""

    def __init__(self, caller: Caller, timeout: float = TIMEOUT_SECONDS) -> None:
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self.call = caller.inference.StreamPredict(iter(self._requests.get, None), timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(None)
        self.call.cancel()

    def put(self, **kind: Message) -> None:
        self._requests.put(inference_pb2.StreamPredictRequest(**kind))

    def bind(self, sessions: Sequence[str], handles: Iterable[int] | None = None, model: str = "") -> None:
        numbers = range(len(sessions)) if handles is None else handles
        self.put(bind=inference_pb2.Bind(model=model, sessions=sessions, handles=numbers))

    def unbind(self, *handles: int) -> None:
        self.put(unbind=inference_pb2.Unbind(handles=handles))

    def send(self, handles: Iterable[int], x: Arrays, **more: Any) -> None:
        """See `frame` for `more`."""
        self.put(frame=frame(handles, x, **more))

    def reply(self) -> FrameReply:
        """The next frame's answer; raises RecurraError if the stream ended instead."""
        try:
            return FrameReply(next(self.call).frame)
        except grpc.RpcError as error:
            raise translated(error) from None

    def ask(self, handles: Iterable[int], x: Arrays, **more: Any) -> FrameReply:
        self.send(handles, x, **more)
        return self.reply()

    def end(self) -> list[FrameReply]:
        """Send no more; the answers still to come."""
        self._requests.put(None)
        return list(self.replies())

    def replies(self) -> Iterator[FrameReply]:
        """The answers until the server ends the stream, and what it ends it with, raised."""
        try:
            for response in self.call:
                yield FrameReply(response.frame)
        except grpc.RpcError as error:
            raise translated(error) from None


def frame(
    handles: Iterable[int],
    x: Arrays,
    *,
    ids: Sequence[bytes] | None = None,
    afters: Sequence[bytes] = (),
    lengths: Sequence[int] = (),
    tag: int = 0,
    return_states: bool = False,
    return_sequences: bool | None = None,
    commit: bool | None = None,
    **more: Any,
) -> inference_pb2.Frame:
    """A Frame; `x` is (N, T, ...), `ids` are new ones where none are given."""
    numbers = np.array(list(handles), "<u4")
    return inference_pb2.Frame(
        tag=tag,
        handles=numbers.tobytes(),
        ids=b"".join(ids if ids is not None else [new_id() for _ in numbers]),
        afters=b"".join(afters),
        inputs=tensors(x),
        lengths=np.array(lengths, "<u4").tobytes(),
        options=inference_pb2.PredictOptions(
            return_states=return_states, return_sequences=return_sequences, commit=commit
        ),
        **more,
    )
