"""What Triton's clients ask about the server and its models, and the calls of its load tool in their order."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import InferenceServerClient, aio, service_pb2

from recurra.wire.errors import ModelNotFound
from tests.service.caller import Caller
from tests.service.processes import ServerProcess
from tests.service.tritons import Streaming, infer, reason, refused
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]


@pytest.fixture(scope="module")
def triton(server: ServerProcess) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.address) as client:
        yield client


def test_the_server_is_live_and_ready_and_names_what_it_offers(triton: InferenceServerClient):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    told = triton.get_server_metadata()
    assert told.name == "recurra"
    assert {"sequence", "statistics", "binary_tensor_data", "model_configuration"} <= set(told.extensions)
    assert not {name for name in told.extensions if "shared_memory" in name}


def test_a_model_is_ready_if_it_is_served(triton: InferenceServerClient):
    assert triton.is_model_ready("lstm")
    assert triton.is_model_ready("lstm", "1")
    assert not triton.is_model_ready("lstm", "2")
    assert not triton.is_model_ready("broken")
    assert not triton.is_model_ready("nobody")


@pytest.mark.parametrize(
    ("name", "datatype", "takes", "gives"),
    [
        ("lstm", "FP32", [-1, -1, 3], [-1, -1, 2]),
        ("gru", "FP32", [-1, -1, 3], [-1, -1, 4]),  # time-major in the graph
        ("cell", "FP32", [-1, 3], [-1, 4]),
        ("embed", "INT64", [-1, -1], [-1, -1, 4]),
    ],
)
def test_metadata_and_configuration_agree_and_hide_the_states(
    triton: InferenceServerClient, name: str, datatype: str, takes: list[int], gives: list[int]
):
    told = triton.get_model_metadata(name)
    assert (told.name, list(told.versions), told.platform) == (name, ["1"], "onnxruntime_onnx")
    assert [(each.datatype, list(each.shape)) for each in told.inputs] == [(datatype, takes)]
    assert [(each.datatype, list(each.shape)) for each in told.outputs] == [("FP32", gives)]
    config = triton.get_model_config(name).config
    assert config.max_batch_size > 0
    assert [list(each.dims) for each in config.input] == [takes[1:]]
    assert [list(each.dims) for each in config.output] == [gives[1:]]
    assert config.HasField("sequence_batching")
    assert config.sequence_batching.max_sequence_idle_microseconds == 86_400 * 10**6
    assert not config.model_transaction_policy.decoupled


@pytest.mark.parametrize("ask", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
def test_an_unknown_model_is_refused(triton: InferenceServerClient, ask: str):
    with refused("INVALID_ARGUMENT", "Request for unknown model: 'nobody' is not found") as caught:
        getattr(triton, ask)("nobody")
    assert isinstance(reason(caught.value), ModelNotFound)
    with refused("INVALID_ARGUMENT", "Request for unknown model: 'lstm' version 2 is not found"):
        getattr(triton, ask)("lstm", "2")


def test_the_index_has_all_models_with_what_is_wrong_with_them(triton: InferenceServerClient):
    told = {model.name: model for model in triton.get_model_repository_index().models}
    assert told.keys() == {*MODELS, "broken"}
    assert (told["lstm"].version, told["lstm"].state) == ("1", "READY")
    assert told["broken"].state == "UNAVAILABLE"
    assert told["broken"].reason


def test_what_is_not_offered_says_so(triton: InferenceServerClient):
    for ask in (
        triton.get_system_shared_memory_status,
        triton.get_cuda_shared_memory_status,
        triton.unregister_system_shared_memory,
        triton.get_trace_settings,
        triton.get_log_settings,
    ):
        with refused("UNIMPLEMENTED") as caught:
            ask()
        assert "shares no memory" in caught.value.message()


def test_statistics_of_all_models_count_what_any_api_did(triton: InferenceServerClient, caller: Caller, session: str):
    def gru() -> service_pb2.ModelStatistics:
        return {each.name: each for each in triton.get_inference_statistics().model_stats}["gru"]

    before = gru()
    x = MODELS["gru"].draw(0, 3)
    infer(triton, "gru", x, session, start=True)
    caller.predict("gru", session, x)
    after = gru()
    assert after.inference_count - before.inference_count == 2
    assert 1 <= after.execution_count - before.execution_count <= 2
    assert after.last_inference > before.last_inference
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        old, new = (getattr(stats.inference_stats, name) for stats in (before, after))
        assert new.count - old.count == 2, name
        assert new.ns > old.ns, name
    assert sum(each.compute_infer.count for each in after.batch_stats) == after.execution_count
    with refused("INVALID_ARGUMENT"):
        infer(triton, "gru", x, f"{session} of nobody")
    assert gru().inference_stats.fail.count == after.inference_stats.fail.count + 1


@pytest.mark.parametrize("streaming", [False, True])
def test_the_calls_of_perf_analyzer_in_their_order(
    triton: InferenceServerClient, server: ServerProcess, *, streaming: bool
):
    """At its start it asks for metadata and configuration; then it takes statistics around each window of requests.

    Its sequences have ids from 1; each ends with its last request. With a rate, several requests of one are in flight.
    """
    told = triton.get_model_metadata("lstm")
    config = triton.get_model_config("lstm").config
    assert "statistics" in triton.get_server_metadata().extensions
    assert config.sequence_batching.WhichOneof("strategy_choice")
    [takes] = told.inputs
    assert list(takes.shape[1:]) == list(config.input[0].dims)
    x, length = LSTM.draw(5, 4), 4

    def windows() -> Iterator[tuple[int, int]]:
        yield from ((sequence, at) for at in range(length) for sequence in (1, 2, 3))

    for _ in range(2):
        before = triton.get_inference_statistics("lstm").model_stats[0]
        found: dict[int, list[np.ndarray]] = {1: [], 2: [], 3: []}
        if streaming:
            with Streaming(server.address) as stream:
                for sequence, at in windows():
                    stream.send("lstm", x[at : at + 1], sequence, start=not at, end=at == length - 1)
                for sequence, _at in windows():
                    found[sequence].append(stream.y())
        else:
            for sequence, at in windows():
                y = infer(triton, "lstm", x[at : at + 1], sequence, start=not at, end=at == length - 1)
                found[sequence].append(y)
        after = triton.get_inference_statistics("lstm").model_stats[0]
        for each in found.values():
            np.testing.assert_allclose(np.concatenate(each), LSTM.whole(x), **CLOSE)
        assert after.inference_count - before.inference_count == 3 * length
        assert after.inference_stats.queue.count - before.inference_stats.queue.count == 3 * length
        assert after.inference_stats.success.count - before.inference_stats.success.count == 3 * length


async def test_the_asyncio_client_is_told_the_same(server: ServerProcess):
    async with aio.InferenceServerClient(server.address) as client:
        assert await client.is_server_ready()
        assert (await client.get_model_metadata("cell")).name == "cell"


def test_reflection_describes_the_service_and_those_beside_it(caller: Caller):
    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)

    def files(symbol: str) -> list[FileDescriptorProto]:
        asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        [answer] = stub.ServerReflectionInfo(iter([asked]), timeout=5)
        return [FileDescriptorProto.FromString(each) for each in answer.file_descriptor_response.file_descriptor_proto]

    for symbol in ("inference.GRPCInferenceService", "recurra.v1.InferenceService", "grpc.health.v1.Health"):
        package, _, name = symbol.rpartition(".")
        described = {(file.package, service.name) for file in files(symbol) for service in file.service}
        assert (package, name) in described


def test_the_methods_are_where_clients_call_them(caller: Caller):
    call = caller.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    assert call(b"", timeout=5) == b"\x08\x01"
    with pytest.raises(grpc.RpcError) as caught:
        caller.channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
