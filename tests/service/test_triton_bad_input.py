"""Requests of Triton's protocol that are refused, and the ways in which a tensor may be written."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from grpc_status import rpc_status

from recurra.inference import service_pb2
from recurra.wire.errors import InvalidArgument, from_status
from tests.service.caller import Caller
from tests.service.processes import ServerProcess
from tests.service.tritons import TIMEOUT_SECONDS
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
X = LSTM.draw(0, 2)
Request = service_pb2.ModelInferRequest
Infer = Callable[[Request], service_pb2.ModelInferResponse]


@pytest.fixture(scope="module")
def infer(server: ServerProcess) -> Iterator[Infer]:
    """ModelInfer, message by message."""
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=Request.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        yield lambda request: call(request, timeout=TIMEOUT_SECONDS)


def request(session: str) -> Request:
    """A first step that is well formed."""
    made = Request(model_name="lstm", id="the first", raw_input_contents=[X.tobytes()])
    made.inputs.add(name="x", datatype="FP32", shape=[1, *X.shape])
    made.parameters["sequence_id"].string_param = session
    made.parameters["sequence_start"].bool_param = True
    return made


def y(response: service_pb2.ModelInferResponse) -> np.ndarray:
    [output] = response.outputs
    return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(output.shape)[0]


def test_a_reply_has_the_ids_and_the_raw_bytes(infer: Infer, session: str):
    response = infer(request(session))
    assert (response.model_name, response.model_version, response.id) == ("lstm", "1", "the first")
    assert [(output.name, output.datatype) for output in response.outputs] == [("y", "FP32")]
    assert not response.outputs[0].HasField("contents")
    np.testing.assert_allclose(y(response), LSTM.whole(X), **CLOSE)


def test_typed_contents_do_for_raw_ones(infer: Infer, session: str):
    made = request(session)
    del made.raw_input_contents[:]
    made.inputs[0].contents.fp32_contents.extend(X.ravel().tolist())
    np.testing.assert_allclose(y(infer(made)), LSTM.whole(X), **CLOSE)


def test_parameters_that_mean_nothing_here_are_taken(infer: Infer, session: str):
    made = request(session)
    made.parameters["triton_enable_empty_final_response"].bool_param = True
    made.parameters["priority"].uint64_param = 3
    made.parameters["of the client's own"].double_param = 0.5
    made.parameters["timeout"].int64_param = 60_000_000
    made.outputs.add(name="y").parameters["binary_data"].bool_param = True
    np.testing.assert_allclose(y(infer(made)), LSTM.whole(X), **CLOSE)


def _raw_too(made: Request) -> None:
    made.inputs[0].contents.fp32_contents.append(1.0)


def _short(made: Request) -> None:
    made.raw_input_contents[0] = made.raw_input_contents[0][:-1]


def _typed_short(made: Request) -> None:
    del made.raw_input_contents[:]
    made.inputs[0].contents.fp32_contents.append(1.0)


def _out_of_range(made: Request) -> None:
    del made.raw_input_contents[:]
    made.inputs[0].datatype = "UINT8"
    made.inputs[0].contents.uint_contents.append(256)


def _half_typed(made: Request) -> None:
    del made.raw_input_contents[:]
    made.inputs[0].datatype = "FP16"


def _other(**fields: object) -> Callable[[Request], None]:
    def change(made: Request) -> None:
        for name, value in fields.items():
            if isinstance(value, list):
                getattr(made.inputs[0], name)[:] = value
            else:
                setattr(made.inputs[0], name, value)

    return change


def _parameter(name: str, **value: object) -> Callable[[Request], None]:
    def change(made: Request) -> None:
        made.parameters[name].CopyFrom(service_pb2.InferParameter(**value))

    return change


def _nan(made: Request) -> None:
    made.raw_input_contents[0] = np.full(X.shape, np.nan, np.float32).tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_raw_too, "contents beside raw_input_contents"),
        (_short, "bytes, but"),
        (_typed_short, "needs 24"),
        (_out_of_range, "no UINT8"),
        (_half_typed, "raw_input_contents"),
        (_nan, "NaN"),
        (_other(shape=[1, 3, 2]), "of shape"),
        (_other(shape=[1, 6]), "of shape"),
        (_other(shape=[2, 1, 3]), "a batch of 2"),
        (_other(shape=[1, -2, 3]), "of shape"),
        (_other(shape=[]), "bytes, but"),
        (_other(datatype="INT32"), "not int32"),
        (_other(datatype="FP42"), "unknown datatype"),
        (_other(name="z"), "takes 'x'"),
        (lambda made: made.inputs.add().CopyFrom(made.inputs[0]), "1 raw_input_contents for 2 inputs"),
        (lambda made: made.ClearField("inputs"), "1 raw_input_contents for 0 inputs"),
        (lambda made: made.inputs[0].parameters["shared_memory_region"].MergeFromString(b""), "no memory"),
        (lambda made: made.outputs.add(name="z"), "unexpected inference output 'z' for model 'lstm'"),
        (lambda made: made.outputs.add(name="y").parameters["classification"].MergeFromString(b""), "classification"),
        (_parameter("triton_mine", bool_param=True), "reserved"),
        (_parameter("sequence_start", int64_param=1), "wrong type"),
        (_parameter("sequence_id", double_param=1.0), "wrong type"),
        (_parameter("sequence_id", string_param="x" * 129), "128 characters"),
        (_parameter("sequence_id", string_param="a\0b"), "control characters"),
        (_parameter("sequence_id"), "wrong type"),
        (lambda made: setattr(made, "model_version", "9"), "Request for unknown model: 'lstm' version 9 is not found"),
        (lambda made: setattr(made, "model_name", ""), "Request for unknown model: '' is not found"),
    ],
)
def test_a_bad_request_is_refused_and_no_timestep_is_consumed(
    infer: Infer, caller: Caller, session: str, change: Callable[[Request], object], words: str
):
    infer(request(session))
    bad = request(session)
    bad.parameters["sequence_start"].bool_param = False
    change(bad)
    with pytest.raises(grpc.RpcError) as caught:
        infer(bad)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()
    assert caller.get("lstm", session).position == 2


def test_what_is_no_message_is_refused(server: ServerProcess):
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff", timeout=TIMEOUT_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(from_status(rpc_status.from_call(caught.value)), InvalidArgument)


def test_a_model_that_failed_to_load_is_unavailable(infer: Infer):
    made = request("s")
    made.model_name = "broken"
    with pytest.raises(grpc.RpcError) as caught:
        infer(made)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details().startswith("Request for unknown model: 'broken' has no available versions")
