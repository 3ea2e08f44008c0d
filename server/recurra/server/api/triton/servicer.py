"""GRPCInferenceService: Triton's and KServe's calls, on the engines that recurra.v1 has."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from recurra.inference import service_pb2
from recurra.server.api import operations
from recurra.server.api.triton import describe
from recurra.server.api.triton.front import Fronts
from recurra.server.api.triton.refusals import told
from recurra.server.api.triton.step import Step
from recurra.server.api.triton.stream import InferStream
from recurra.server.repository import Repository
from recurra.server.served import Served
from recurra.wire.errors import InvalidArgument, ModelNotFound, Unimplemented

Context = grpc.aio.ServicerContext[Any, Any]


class Triton:
    """Every rpc of the service; those that are not offered say so."""

    def __init__(self, served: Served, repository: Repository | None = None) -> None:
        """`repository`: models are loaded and unloaded there, where that is allowed."""
        self._served, self._fronts, self._repository = served, Fronts(served), repository

    @property
    def _ready(self) -> bool:
        return not self._served.stopping.done()

    async def ServerLive(self, request: service_pb2.ServerLiveRequest, _: Context) -> service_pb2.ServerLiveResponse:  # noqa: N802
        del request
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: service_pb2.ServerReadyRequest, _: Context) -> service_pb2.ServerReadyResponse:  # noqa: N802
        del request
        return service_pb2.ServerReadyResponse(ready=self._ready)

    async def ModelReady(self, request: service_pb2.ModelReadyRequest, _: Context) -> service_pb2.ModelReadyResponse:  # noqa: N802
        engine = self._served.engines.get(request.name)
        there = engine is not None and request.version in ("", engine.model.version)
        return service_pb2.ModelReadyResponse(ready=there and self._ready)

    async def ServerMetadata(  # noqa: N802
        self, request: service_pb2.ServerMetadataRequest, _: Context
    ) -> service_pb2.ServerMetadataResponse:
        del request
        return describe.server()

    async def ModelMetadata(  # noqa: N802
        self, request: service_pb2.ModelMetadataRequest, _: Context
    ) -> service_pb2.ModelMetadataResponse:
        return describe.metadata(self._fronts.find(request.name, request.version))

    async def ModelInfer(  # noqa: N802
        self, request: service_pb2.ModelInferRequest, context: Context
    ) -> service_pb2.ModelInferResponse:
        front = self._fronts.find(request.model_name, request.model_version)
        return await Step(front, request, operations.wait_seconds(context)).done()

    async def ModelStreamInfer(self, requests: Any, context: Context) -> None:  # noqa: N802
        await InferStream(self._fronts, context).serve(requests)

    async def ModelConfig(self, request: service_pb2.ModelConfigRequest, _: Context) -> service_pb2.ModelConfigResponse:  # noqa: N802
        front = self._fronts.find(request.name, request.version)
        return service_pb2.ModelConfigResponse(config=describe.config(front))

    async def ModelStatistics(  # noqa: N802
        self, request: service_pb2.ModelStatisticsRequest, _: Context
    ) -> service_pb2.ModelStatisticsResponse:
        names = [request.name] if request.name else sorted(self._served.engines)
        fronts = [self._fronts.find(name, request.version) for name in names]
        return service_pb2.ModelStatisticsResponse(model_stats=[describe.statistics(front) for front in fronts])

    async def RepositoryIndex(  # noqa: N802
        self, request: service_pb2.RepositoryIndexRequest, _: Context
    ) -> service_pb2.RepositoryIndexResponse:
        return describe.index(self._served, ready=request.ready)

    async def RepositoryModelLoad(  # noqa: N802
        self, request: service_pb2.RepositoryModelLoadRequest, _: Context
    ) -> service_pb2.RepositoryModelLoadResponse:
        if request.parameters:
            raise InvalidArgument("a model is loaded as it is in the repository: parameters cannot change it")
        try:
            await self._changes().load(request.model_name)
        except ModelNotFound as error:
            raise told(error, request.model_name) from None
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: service_pb2.RepositoryModelUnloadRequest, _: Context
    ) -> service_pb2.RepositoryModelUnloadResponse:
        try:
            await self._changes().unload(request.model_name)
        except ModelNotFound as error:
            raise told(error, request.model_name) from None
        return service_pb2.RepositoryModelUnloadResponse()

    def _changes(self) -> Repository:
        if self._repository is None:
            error = Unimplemented(
                "explicit model load / unload is not allowed: start one worker with --model-control explicit"
            )
            error.code = grpc.StatusCode.UNAVAILABLE
            raise error
        return self._repository

    async def _unoffered(self, request: Any, context: Context) -> Any:
        del request, context
        raise Unimplemented("this server shares no memory; its logs and traces have settings of their own")

    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _unoffered
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _unoffered
    TraceSetting = LogSettings = _unoffered
