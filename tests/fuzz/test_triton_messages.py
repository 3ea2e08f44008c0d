"""Whatever bytes come to Triton's methods: a status that was foreseen, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.inference import service_pb2
from recurra.wire.errors import DeadlineExceeded, ModelUnavailable, RecurraError, Unimplemented
from tests.fuzz.messages import mutated
from tests.fuzz.test_messages import DEADLINE_SECONDS, EXAMPLES
from tests.service.caller import OWN, translated
from tests.service.processes import ServerProcess
from tests.service.zoo import MODELS

SERVICE: Final = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
METHODS: Final = list(SERVICE.methods_by_name)
FORESEEN: Final = (ModelUnavailable, Unimplemented, DeadlineExceeded)  # with UNAVAILABLE, as Triton tells them
X: Final = MODELS["lstm"].draw(0, 2)


def step(*, typed: bool = False, rows: int = 0) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="lstm", model_version="1", id="7")
    request.inputs.add(name="x", datatype="FP32", shape=[rows or 1, *X.shape])
    request.outputs.add(name="y")
    x = np.stack([X] * (rows or 1))
    if typed:
        request.inputs[0].contents.fp32_contents.extend(x.ravel().tolist())
    else:
        request.raw_input_contents.append(x.tobytes())
    if rows:
        request.inputs.add(name="sequence_ids", datatype="BYTES", shape=[rows])
        request.raw_input_contents.append(b"".join(b"\1\0\0\0" + bytes([65 + row]) for row in range(rows)))
    request.parameters["sequence_id"].int64_param = 7
    request.parameters["sequence_start"].bool_param = True
    request.parameters["timeout"].uint64_param = 10_000_000
    return request


VALID: Final = {
    name: [step(), step(typed=True), step(rows=3)] if method.input_type.name == "ModelInferRequest" else [asked]
    for name, method in SERVICE.methods_by_name.items()
    for asked in [getattr(service_pb2, method.input_type.name)()]
}
for asked_ in (VALID["ModelConfig"], VALID["ModelMetadata"], VALID["ModelStatistics"], VALID["ModelReady"]):
    asked_[0].name = "lstm"


@pytest.fixture(scope="module")
def channel(fuzzed: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(fuzzed.address, OWN) as channel:
        yield channel


def sent(channel: grpc.Channel, name: str, data: Sequence[bytes]) -> list[service_pb2.ModelStreamInferResponse]:
    """The answers of a stream. Raises grpc.RpcError."""
    path = f"/{SERVICE.full_name}/{name}"
    if name == "ModelStreamInfer":
        parse = service_pb2.ModelStreamInferResponse.FromString
        return list(channel.stream_stream(path, None, parse)(iter(data), timeout=DEADLINE_SECONDS))
    channel.unary_unary(path, None, None)(data[0], timeout=DEADLINE_SECONDS)
    return []


def settle(channel: grpc.Channel, name: str, data: Sequence[bytes]) -> None:
    """Send these messages; what comes must be answers, or an error that the method may give."""
    try:
        replies = sent(channel, name, data)
    except grpc.RpcError as error:
        told, code = translated(error), error.code()
    else:
        reasons = [reply.infer_response.parameters["recurra_reason"].string_param for reply in replies]
        assert "INTERNAL" not in reasons
        return
    assert type(told) is not RecurraError, told
    assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED), told
    assert code is not grpc.StatusCode.UNAVAILABLE or isinstance(told, FORESEEN), told


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data())
@EXAMPLES
def test_random_bytes_are_refused_or_answered(channel: grpc.Channel, name: str, data: st.DataObject):
    settle(channel, name, data.draw(st.lists(st.binary(max_size=200), min_size=1, max_size=3)))


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data())
@EXAMPLES
def test_a_request_that_was_mutated_is_refused_or_answered(channel: grpc.Channel, name: str, data: st.DataObject):
    good = [message.SerializeToString() for message in VALID[name]]
    settle(channel, name, data.draw(st.lists(mutated(*good), min_size=1, max_size=3)))


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("rows", [0, 3])
def test_what_is_mutated_is_well_formed(channel: grpc.Channel, typed: bool, rows: int):  # noqa: FBT001
    if not (typed and rows):
        [reply] = sent(channel, "ModelStreamInfer", [step(typed=typed, rows=rows).SerializeToString()])
        assert not reply.error_message
