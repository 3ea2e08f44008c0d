"""ModelService: what each model takes, gives and remembers, and how it is served."""

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from recurra.models import Model, TensorSpec
from recurra.server.served import Served
from recurra.v1 import model_pb2, model_pb2_grpc
from recurra.wire.errors import ModelNotFound
from recurra.wire.tensors import code_of

Context = grpc.aio.ServicerContext[Any, Any]


class Models(model_pb2_grpc.ModelServiceServicer):
    """ListModels and GetModel."""

    def __init__(self, served: Served) -> None:
        self._served = served

    async def ListModels(  # noqa: N802
        self, request: model_pb2.ListModelsRequest, context: Context
    ) -> model_pb2.ListModelsResponse:
        del request, context
        names = sorted(self._served.engines.keys() | self._served.refused.keys())
        return model_pb2.ListModelsResponse(models=[self._model(name) for name in names])

    async def GetModel(  # noqa: N802
        self, request: model_pb2.GetModelRequest, context: Context
    ) -> model_pb2.GetModelResponse:
        del context
        if request.model not in self._served.refused:
            self._served.engine(request.model)
        return model_pb2.GetModelResponse(model=self._model(request.model))

    def _model(self, name: str) -> model_pb2.Model:
        if name in self._served.refused:
            error = self._served.refused[name]
            return model_pb2.Model(name=name, status=model_pb2.MODEL_STATUS_FAILED, error=error)
        if name not in self._served.engines:
            raise ModelNotFound(f"no model '{name}'")
        return _describe(self._served.engines[name].model)


def _describe(model: Model) -> model_pb2.Model:
    signature, test = model.signature, model.self_test
    return model_pb2.Model(
        name=model.name,
        version=model.version,
        status=model_pb2.MODEL_STATUS_READY,
        inputs=[_spec(spec) for spec in signature.inputs],
        outputs=[_spec(spec) for spec in signature.outputs],
        states=[
            model_pb2.StateSpec(name=s.name, layer=s.layer, dtype=code_of(s.dtype), shape=s.shape)
            for s in signature.states
        ],
        state_bytes=signature.state_bytes,
        chunk_sizes=signature.chunk_sizes,
        session_ttl=Duration(seconds=int(model.config.session_ttl), nanos=int(model.config.session_ttl % 1 * 1e9)),
        max_batch=model.max_batch,
        self_test=model_pb2.SelfTest(
            chunked=test.chunked,
            batched=test.batched,
            chunked_error=test.chunked_error,
            batched_error=test.batched_error,
            notes=test.notes,
            ragged=test.ragged,
        ),
        providers=model.providers,
        nodes=model.nodes,
        strays=[
            model_pb2.StrayNode(op=stray.op, name=stray.name, reason=stray.reason, sizes=stray.sizes)
            for stray in model.strays
        ],
        start_inputs=[_spec(spec) for spec in model.start.inputs] if model.start else [],
    )


def _spec(spec: TensorSpec) -> model_pb2.TensorSpec:
    shape = [-1 if size is None else size for size in spec.shape]
    return model_pb2.TensorSpec(
        name=spec.name, dtype=code_of(spec.dtype), shape=shape, has_time_axis=spec.has_time_axis
    )
