"""Frames: many sessions' chunks as columns of one message."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from recurra.client.operation import Create
from recurra.client.standing import Durability
from recurra.v1 import inference_pb2, session_pb2, tensor_pb2
from recurra.wire.errors import RecurraError, from_status
from recurra.wire.tensors import to_array, to_tensor

Ids = NDArray[np.uint8]
"""(N, 16): one operation id a row; zeros: none."""

CREATES = {
    Create.IF_MISSING: session_pb2.CREATE_IF_MISSING,
    Create.NEVER: session_pb2.CREATE_NEVER,
    Create.NEW: session_pb2.CREATE_NEW,
}
_DURABILITIES = {
    None: inference_pb2.DURABILITY_UNSPECIFIED,
    "committed": inference_pb2.DURABILITY_COMMITTED,
    "checkpointed": inference_pb2.DURABILITY_CHECKPOINTED,
    "replicated": inference_pb2.DURABILITY_REPLICATED,
}


def columns(
    inputs: Sequence[tensor_pb2.Tensor],
    options: inference_pb2.PredictOptions,
    lengths: NDArray[np.uint32] | None = None,
) -> inference_pb2.Frame:
    """A frame without names: inputs (N, T, ...), lengths (N,)."""
    return inference_pb2.Frame(inputs=inputs, options=options, lengths=b"" if lengths is None else lengths.tobytes())


def take(frame: inference_pb2.Frame, places: NDArray[np.int64]) -> inference_pb2.Frame:
    """Some rows of a frame's columns, without names."""
    tensors = [to_tensor(to_array(tensor)[places], tensor.name) for tensor in frame.inputs]
    lengths = np.frombuffer(frame.lengths, "<u4")[places] if frame.lengths else None
    some = columns(tensors, frame.options, lengths)
    some.options.ClearField("durability")
    return some


def normal(frame: inference_pb2.Frame) -> inference_pb2.Frame:
    """One row's columns as if all rows had been of its length, to tell whether the same is asked again."""
    [length] = np.frombuffer(frame.lengths, "<u4").tolist() or [0]
    plain = columns([_cut(tensor, length) for tensor in frame.inputs] if length else frame.inputs, frame.options)
    if length and any(len(tensor.shape) > 1 and tensor.shape[1] != length for tensor in plain.inputs):
        plain.lengths = frame.lengths
    return plain


def _cut(tensor: tensor_pb2.Tensor, length: int) -> tensor_pb2.Tensor:
    """One row without the zeros behind its length: a longer row beside it may have brought them."""
    if len(tensor.shape) < 2 or tensor.shape[1] <= length:  # noqa: PLR2004
        return tensor
    array = to_array(tensor)
    return tensor if array[:, length:].any() else to_tensor(array[:, :length], tensor.name)


def put_names(
    frame: inference_pb2.Frame,
    *,
    handles: NDArray[np.uint32],
    ids: Ids,
    afters: Ids,
    create: Create,
    expire_time: datetime | None,
    durability: Durability | None,
) -> inference_pb2.Frame:
    """The same frame, with each row's session and operation. `handles`: (N,)."""
    frame.options.durability = _DURABILITIES[durability]
    frame.handles, frame.ids = handles.astype("<u4").tobytes(), ids.tobytes()
    frame.afters = afters.tobytes() if afters.any() else b""
    frame.create = CREATES[create]
    if expire_time is not None:
        frame.expire_time.CopyFrom(timestamp(expire_time))
    return frame


def kind(frame: inference_pb2.Frame) -> object:
    """What frames have in common that can travel as one."""
    tensors = tuple((tensor.name, tensor.dtype, *tensor.shape[1:]) for tensor in frame.inputs)
    options = frame.options.SerializeToString(deterministic=True)
    return tensors, options, frame.create, bool(frame.lengths), bool(frame.afters)


def merge(frames: Sequence[inference_pb2.Frame]) -> inference_pb2.Frame:
    """Frames of one kind as one, their rows after each other."""
    first = frames[0]
    merged = inference_pb2.Frame(options=first.options, create=first.create)
    for column in ("handles", "ids", "afters", "lengths"):
        setattr(merged, column, b"".join(getattr(frame, column) for frame in frames))
    for place, tensor in enumerate(first.inputs):
        parts = [frame.inputs[place] for frame in frames]
        shape = [sum(part.shape[0] for part in parts), *tensor.shape[1:]]
        data = b"".join(part.data for part in parts)
        merged.inputs.append(tensor_pb2.Tensor(name=tensor.name, dtype=tensor.dtype, shape=shape, data=data))
    told = [frame.expire_time for frame in frames if frame.HasField("expire_time")]
    if told:
        merged.expire_time.CopyFrom(max(told, key=Timestamp.ToNanoseconds))
    return merged


def cut(result: inference_pb2.FrameResult, place: int) -> inference_pb2.FrameResult:
    """One row of a result that did not fail, as a result of its own."""
    one = inference_pb2.FrameResult(created=result.created[place : place + 1])
    one.positions = result.positions[8 * place : 8 * place + 8]
    one.durable_positions = result.durable_positions[8 * place : 8 * place + 8]
    one.incarnations = result.incarnations[16 * place : 16 * place + 16]
    one.outputs.extend(to_tensor(to_array(tensor)[place : place + 1], tensor.name) for tensor in result.outputs)
    one.states.extend(to_tensor(to_array(tensor)[place : place + 1], tensor.name) for tensor in result.states)
    if result.HasField("expire_time"):
        one.expire_time.CopyFrom(result.expire_time)
    return one


def timestamp(moment: datetime) -> Timestamp:
    """The time as a message."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def row_errors(result: inference_pb2.FrameResult) -> dict[int, RecurraError]:
    """Why rows of a frame failed, by row."""
    return {error.row: from_status(error.status) for error in result.errors}
