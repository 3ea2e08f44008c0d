"""InferenceService: one session's chunk a call."""

from __future__ import annotations

from typing import Any

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from recurra.models import Model
from recurra.server.api import inputs, operations
from recurra.server.api.frames import FrameStream
from recurra.server.engine.operation import Block, Kind
from recurra.server.served import Served
from recurra.v1 import inference_pb2, inference_pb2_grpc
from recurra.wire.errors import InvalidArgument
from recurra.wire.tensors import fill

Array = NDArray[Any]
Context = grpc.aio.ServicerContext[Any, Any]


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    """Predict and StreamPredict."""

    def __init__(self, served: Served) -> None:
        self._served = served

    async def Predict(  # noqa: N802
        self, request: inference_pb2.PredictRequest, context: Context
    ) -> inference_pb2.PredictResponse:
        engine = self._served.engine(request.model)
        model, options, name = engine.model, request.options, request.session
        level = operations.durability(options, model)
        if options.durability == inference_pb2.DURABILITY_CHECKPOINTED:
            raise InvalidArgument("a call is committed before it is answered: checkpointed is for frames on a stream")
        arrays, timesteps = inputs.chunk(model.signature, request.inputs, None)
        steps = _steps(model, request.mask, timesteps) if request.mask else None
        if steps is not None:
            arrays = [
                array[:, steps] if spec.has_time_axis else array
                for array, spec in zip(arrays, model.signature.inputs, strict=True)
            ]
        slot = engine.slot(operations.session_name(name)) if name else 0
        sequences = options.return_sequences if options.HasField("return_sequences") else True
        block = operations.block(
            engine,
            request.operation,
            slot,
            kind=Kind.PREDICT,
            wait_seconds=operations.wait_seconds(context),
            given=inputs.states(model.signature, request.initial_state),
            start=inputs.start(model, request.start_inputs),
            inputs=arrays,
            timesteps=timesteps if steps is None else len(steps),
            commit=bool(slot) and (options.commit if options.HasField("commit") else True),
            return_states=options.return_states,
            return_sequences=sequences,
            durability=level,
        )
        await operations.done(engine, block)
        if steps is not None and sequences:
            block.outputs = _spread(model, block.outputs, steps, timesteps)
        return _response(model, name, block)

    async def StreamPredict(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override] # noqa: N802
        await FrameStream(self._served, context).serve(request_iterator)


def _response(model: Model, name: str, block: Block) -> inference_pb2.PredictResponse:
    response = inference_pb2.PredictResponse(duplicate=bool(block.duplicates))
    for output, spec in zip(block.outputs, model.signature.outputs, strict=True):
        fill(response.outputs.add(), output[0], spec.name)
    if block.return_states:
        for state, owner in zip(block.states, model.signature.states, strict=True):
            fill(response.states.add(), state[0], owner.name)
    if name and block.headers is not None:
        operations.stand(response.session, model, name, block.headers[0])
    return response


def _steps(model: Model, mask: bytes, timesteps: int) -> NDArray[np.intp]:
    """The timesteps that a mask leaves."""
    values = np.frombuffer(mask, np.uint8)
    if len(values) != timesteps or values.max() > 1:
        raise InvalidArgument(f"the mask is {timesteps} bytes of 0 or 1 for this chunk")
    steps = np.flatnonzero(values)
    inputs.allow(model.signature, len(steps))
    return steps


def _spread(model: Model, outputs: list[Array], steps: NDArray[np.intp], timesteps: int) -> list[Array]:
    """Outputs over all timesteps: at those passed over the last one again, zeros before any, as Keras does."""
    last = np.searchsorted(steps, np.arange(timesteps), "right") - 1
    spread = []
    for output, spec in zip(outputs, model.signature.outputs, strict=True):
        whole = output[:, last] * (last >= 0).reshape(-1, *[1] * (output.ndim - 2)) if spec.has_time_axis else output
        spread.append(whole.astype(output.dtype))
    return spread
