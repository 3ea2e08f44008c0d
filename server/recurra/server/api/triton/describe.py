"""What is told of the server and its models, as messages."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from recurra.inference import service_pb2
from recurra.server.api.triton.front import Front
from recurra.server.served import Served
from recurra.server.statistics import Total

PLATFORM: Final = "onnxruntime_onnx"
_EXTENSIONS: Final = (
    "sequence",
    "sequence(string_id)",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "model_configuration",
    "model_repository",
)


def server() -> service_pb2.ServerMetadataResponse:
    """The server's name, version and extensions."""
    return service_pb2.ServerMetadataResponse(name="recurra", version=version("recurra"), extensions=_EXTENSIONS)


def metadata(front: Front) -> service_pb2.ModelMetadataResponse:
    """What a model takes and gives."""
    response = service_pb2.ModelMetadataResponse(
        name=front.model.name, versions=[front.model.version], platform=PLATFORM
    )
    for into, tensors in ((response.inputs, front.inputs.values()), (response.outputs, front.outputs)):
        for tensor in tensors:
            into.add(name=tensor.spec.name, datatype=tensor.datatype, shape=tensor.shape)
    return response


def config(front: Front) -> service_pb2.ModelConfig:
    """A model's configuration, as if a config.pbtxt had said it."""
    model = front.model
    message = service_pb2.ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend="onnxruntime",
        max_batch_size=front.max_batch,
        default_model_filename="model.onnx",
    )
    message.version_policy.latest.num_versions = 1
    for tensor in front.inputs.values():
        message.input.add(name=tensor.spec.name, data_type=_code(tensor.datatype), dims=tensor.dims)
    for tensor in front.outputs:
        message.output.add(name=tensor.spec.name, data_type=_code(tensor.datatype), dims=tensor.dims)
    sequences = message.sequence_batching
    sequences.max_sequence_idle_microseconds = model.config.session_ttl * 1_000_000
    sequences.oldest.max_candidate_sequences = model.max_batch
    message.model_transaction_policy.decoupled = False
    return message


def statistics(front: Front) -> service_pb2.ModelStatistics:
    """What a model has served."""
    told = front.engine.statistics
    message = service_pb2.ModelStatistics(
        name=front.model.name,
        version=front.model.version,
        last_inference=int(told.last_seconds * 1000),
        inference_count=told.inferences,
        execution_count=told.executions,
    )
    stats, (gathered, run, packed) = message.inference_stats, told.computed()
    each = {
        "success": told.success,
        "fail": told.fail,
        "queue": told.queue,
        "compute_input": gathered,
        "compute_infer": run,
        "compute_output": packed,
    }
    for name, total in each.items():
        _fill(getattr(stats, name), total)
    for size, same in sorted(told.by_size.items()):
        batch = message.batch_stats.add(batch_size=size)
        _fill(batch.compute_input, Total(same.runs, same.gathering))
        _fill(batch.compute_infer, Total(same.runs, same.running))
        _fill(batch.compute_output, Total(same.packs, same.packing))
    return message


def index(served: Served, *, ready: bool) -> service_pb2.RepositoryIndexResponse:
    """All models; or only those that are served."""
    response = service_pb2.RepositoryIndexResponse()
    for name in sorted(served.engines.keys() | served.refused.keys()):
        if name in served.engines:
            response.models.add(name=name, version=served.engines[name].model.version, state="READY")
        elif not ready:
            response.models.add(name=name, state="UNAVAILABLE", reason=served.refused[name])
    return response


def _fill(message: service_pb2.StatisticDuration, total: Total) -> None:
    message.count, message.ns = total.count, int(total.seconds * 1e9)


def _code(datatype: str) -> service_pb2.DataType.ValueType:
    return service_pb2.DataType.Value(f"TYPE_{datatype}")
