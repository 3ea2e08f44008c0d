"""Whatever bytes come to a method: a status that was foreseen, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.inference import service_pb2
from recurra.v1 import inference_pb2, model_pb2, session_pb2
from recurra.wire.errors import ModelUnavailable, RecurraError
from tests.fuzz.messages import messages, mutated
from tests.service.caller import OWN, frame, new_id, operation, request, tensors, translated
from tests.service.processes import ServerProcess
from tests.service.zoo import MODELS

LSTM: Final = MODELS["lstm"]
X: Final = LSTM.draw(0, 2)
DEADLINE_SECONDS: Final = 20.0
EXAMPLES: Final = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


class Method(NamedTuple):
    """One rpc; `own`: of Recurra's services, so that its errors are of the taxonomy."""

    path: str
    takes: Descriptor
    streams: bool
    own: bool

    def __str__(self) -> str:
        return self.path.rpartition("/")[2]


def _methods() -> Iterator[Method]:
    for file, own in (
        (inference_pb2, True),
        (session_pb2, True),
        (model_pb2, True),
        (service_pb2, True),
        (health_pb2, False),
        (reflection_pb2, False),
    ):
        services: dict[str, ServiceDescriptor] = file.DESCRIPTOR.services_by_name
        for service in services.values():
            for method in service.methods:
                if method.name in ("RepositoryModelLoad", "RepositoryModelUnload"):
                    continue  # UNAVAILABLE where they are not allowed, as Triton's
                path = f"/{service.full_name}/{method.name}"
                yield Method(path, method.input_type, method.client_streaming or method.server_streaming, own)


METHODS: Final = list(_methods())
STREAM: Final = next(method for method in METHODS if str(method) == "StreamPredict")


def infer(**parameters: bool) -> service_pb2.ModelInferRequest:
    """A step of a sequence, as Triton's clients send it."""
    made = service_pb2.ModelInferRequest(model_name="lstm", raw_input_contents=[X.tobytes()])
    made.inputs.add(name="x", datatype="FP32", shape=[1, *X.shape])
    made.parameters["sequence_id"].string_param = "fuzz"
    for name, value in parameters.items():
        made.parameters[name].bool_param = value
    return made


@cache
def valid(method: Method) -> tuple[bytes, ...]:
    """Requests that the server takes."""
    op, arrays = operation(new_id()), {"lstm_1/h": np.ones((1, 6), np.float32)}
    s = session_pb2
    good: dict[str, list[Any]] = {
        "Predict": [
            request("lstm", "fuzz", X, id=new_id(), ttl=60.0),
            request("lstm", "fuzz", X, initial=arrays, return_states=True, mask=[1, 0]),
            request("embed", "fuzz", MODELS["embed"].draw(0, 2), commit=False),
            request("gru", "fuzz", X, start=np.ones((4, 5), np.float32)),
        ],
        "StreamPredict": [
            inference_pb2.StreamPredictRequest(frame=frame([0, 1], np.stack([X, X]), lengths=[1, 2])),
            inference_pb2.StreamPredictRequest(frame=frame([1], X[None], return_states=True, tag=7)),
            inference_pb2.StreamPredictRequest(bind=inference_pb2.Bind(model="lstm", sessions=["fuzz 3"], handles=[5])),
            inference_pb2.StreamPredictRequest(unbind=inference_pb2.Unbind(handles=[0])),
        ],
        "ListSessions": [s.ListSessionsRequest(model="lstm", page_size=3, page_token="17")],
        "ResetState": [
            s.ResetStateRequest(model="lstm", sessions=["fuzz", "fuzz 2"], operations=[op, op], values=tensors(arrays))
        ],
        "ModelInfer": [infer(sequence_start=True), infer(), infer(sequence_end=True)],
        "ModelStreamInfer": [infer(), infer(sequence_start=True, sequence_end=True)],
        "SetState": [s.SetStateRequest(model="lstm", session="fuzz", operation=op, states=tensors(arrays))],
    }
    plain = {
        "model": "lstm",
        "name": "lstm",
        "session": "fuzz",
        "operation": op,
        "service": "recurra.v1.InferenceService",
    }
    cls = message_factory.GetMessageClass(method.takes)
    some = cls(**{name: value for name, value in plain.items() if name in method.takes.fields_by_name})
    return tuple(message.SerializeToString() for message in good.get(str(method), [some]))


BIND: Final = inference_pb2.StreamPredictRequest(
    bind=inference_pb2.Bind(model="lstm", sessions=["fuzz", "fuzz 2"], handles=[0, 1])
).SerializeToString()


@pytest.fixture(scope="module")
def channel(fuzzed: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(fuzzed.address, OWN) as channel:
        yield channel


def sent(channel: grpc.Channel, method: Method, data: Sequence[bytes]) -> grpc.RpcError | None:
    """Send these messages; the error that comes, if one does."""
    try:
        if method.streams:
            call = channel.stream_stream(method.path, None, None)(iter(data), timeout=DEADLINE_SECONDS)
            for _ in call:
                if str(method) == "Watch":  # it would never end
                    call.cancel()
                    return None
        else:
            channel.unary_unary(method.path, None, None)(data[0], timeout=DEADLINE_SECONDS)
    except grpc.RpcError as error:
        return error
    return None


def settle(channel: grpc.Channel, method: Method, data: Sequence[bytes]) -> None:
    """Send these messages; what comes must be answers, or an error that the method may give."""
    error = sent(channel, method, data)
    if error is None:
        return
    told = translated(error)
    if isinstance(told, ModelUnavailable):  # the broken one
        return
    assert error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED), told
    if method.own:
        assert type(told) is not RecurraError, told
        assert error.code() is not grpc.StatusCode.UNKNOWN, told


@pytest.mark.parametrize("method", METHODS, ids=str)
@given(data=st.data())
@EXAMPLES
def test_random_bytes_are_refused_or_answered(channel: grpc.Channel, method: Method, data: st.DataObject):
    settle(channel, method, data.draw(st.lists(st.binary(max_size=200), min_size=1, max_size=3)))


@pytest.mark.parametrize("method", METHODS, ids=str)
@given(data=st.data())
@EXAMPLES
def test_a_request_that_was_mutated_is_refused_or_answered(channel: grpc.Channel, method: Method, data: st.DataObject):
    drawn = data.draw(st.lists(mutated(*valid(method)), min_size=1, max_size=3 if method.streams else 1))
    settle(channel, method, [BIND, *drawn] if str(method) == "StreamPredict" else drawn)


@pytest.mark.parametrize("method", [method for method in METHODS if method.own], ids=str)
@given(data=st.data())
@EXAMPLES
def test_a_well_formed_message_that_says_anything_is_refused_or_answered(
    channel: grpc.Channel, method: Method, data: st.DataObject
):
    drawn = data.draw(st.lists(messages(method.takes), min_size=1, max_size=3 if method.streams else 1))
    written = [message.SerializeToString() for message in drawn]
    bound = str(method) == "StreamPredict" and data.draw(st.booleans())
    settle(channel, method, [BIND, *written] if bound else written)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_what_is_mutated_is_well_formed(channel: grpc.Channel, method: Method):
    for data in valid(method):
        error = sent(channel, method, [BIND, data] if str(method) == "StreamPredict" else [data])
        assert error is None or error.code() is not grpc.StatusCode.INVALID_ARGUMENT, error


@pytest.mark.parametrize("size", [1 << 20, 63 << 20, 65 << 20])
def test_a_large_message_of_nothing_is_refused(channel: grpc.Channel, size: int):
    for method in METHODS:
        if method.own:
            settle(channel, method, [bytes(size)])


@pytest.mark.parametrize("times", range(4))
def test_a_large_message_that_is_refused_late_is_not_kept(channel: grpc.Channel, times: int):
    """A stream's bind of a session with an endless name: it is parsed, and looked at."""
    bind = inference_pb2.Bind(model="lstm", sessions=["x" * (60 << 20)], handles=[0])
    error = sent(channel, STREAM, [BIND, inference_pb2.StreamPredictRequest(bind=bind).SerializeToString()])
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
