"""ModelStreamInfer: steps of any models and sequences, answered in the order of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio

from recurra.inference import service_pb2
from recurra.server.api import duplex, operations
from recurra.server.api.triton.front import Fronts
from recurra.server.api.triton.step import Step
from recurra.wire.errors import RecurraError

_MAX_STEPS: Final = 4_096  # in flight on one stream; then it is not read on

Response = service_pb2.ModelStreamInferResponse


class InferStream:
    """One call: a task reads and submits, the call's own answers."""

    def __init__(self, fronts: Fronts, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._fronts, self._context = fronts, context
        self._steps: asyncio.Queue[Step | Response | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_MAX_STEPS)
        self._flying: set[Step] = set()

    async def serve(self, requests: AsyncIterator[service_pb2.ModelInferRequest]) -> None:
        """Read until the client is done, answering meanwhile; what was read is answered, however the reading ends.

        Raises DecodeError for what is no message, Draining where the server stops.
        """
        try:
            await duplex.serve(self._fronts.served, self._read(requests), self._write())
        finally:
            for step in self._flying:
                step.cancel()

    async def _read(self, requests: AsyncIterator[service_pb2.ModelInferRequest]) -> None:
        wait = operations.wait_seconds(self._context)
        try:
            with self._fronts.served.until_stopping():
                async for request in requests:
                    await self._room.acquire()
                    self._steps.put_nowait(self._step(request, wait))
        finally:
            self._steps.put_nowait(None)

    def _step(self, request: service_pb2.ModelInferRequest, wait_seconds: float | None) -> Step | Response:
        try:
            step = Step(self._fronts.find(request.model_name, request.model_version), request, wait_seconds)
        except RecurraError as error:
            return _refusal(error, request.id)
        self._flying.add(step)
        return step

    async def _write(self) -> None:
        while (step := await self._steps.get()) is not None:
            await self._context.write(await self._answer(step) if isinstance(step, Step) else step)
            self._room.release()

    async def _answer(self, step: Step) -> Response:
        try:
            response = Response(infer_response=await step.done())
        except RecurraError as error:
            response = _refusal(error, step.id)
        self._flying.discard(step)
        response.infer_response.parameters["triton_final_response"].bool_param = True
        return response


def _refusal(error: RecurraError, request_id: str) -> Response:
    """The error, with the id of its request, and the typed reason, for which a stream has no trailers."""
    response = Response(error_message=str(error) or error.reason)
    response.infer_response.id = request_id
    response.infer_response.parameters["recurra_reason"].string_param = error.reason
    response.infer_response.parameters["triton_final_response"].bool_param = True
    return response
