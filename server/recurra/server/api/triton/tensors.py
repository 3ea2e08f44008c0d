"""Tensors of a ModelInferRequest as numpy arrays."""

from __future__ import annotations

import struct
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.inference import service_pb2
from recurra.server.api.triton.front import DTYPES
from recurra.wire.errors import InvalidArgument
from recurra.wire.tensors import view

Array = NDArray[Any]

_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_SHARED: Final = "shared_memory_region"


def arrays(request: service_pb2.ModelInferRequest) -> dict[str, Array]:
    """The inputs by name, as they were sent; BYTES as an array of bytes objects. Raises InvalidArgument."""
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise InvalidArgument(f"{len(raws)} raw_input_contents for {len(request.inputs)} inputs")
    found: dict[str, Array] = {}
    for at, tensor in enumerate(request.inputs):
        if tensor.name in found:
            raise InvalidArgument(f"input '{tensor.name}' comes twice")
        if tensor.parameters and _SHARED in tensor.parameters:
            raise InvalidArgument(f"input '{tensor.name}': this server shares no memory; send the tensor's bytes")
        if raws and tensor.HasField("contents"):
            raise InvalidArgument(f"input '{tensor.name}' has contents beside raw_input_contents")
        found[tensor.name] = _raw(tensor, raws[at]) if raws else _typed(tensor)
    return found


def _raw(tensor: service_pb2.ModelInferRequest.InferInputTensor, data: bytes) -> Array:
    if tensor.datatype == "BYTES":
        return _objects(tensor, _texts(tensor.name, data))
    return view(data, _dtype(tensor), tuple(tensor.shape), tensor.name)


def _typed(tensor: service_pb2.ModelInferRequest.InferInputTensor) -> Array:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        _dtype(tensor)
        raise InvalidArgument(f"input '{tensor.name}': {tensor.datatype} is sent in raw_input_contents")
    values = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        return _objects(tensor, list(values))
    dtype = _dtype(tensor)
    try:
        data = np.array(values, dtype).tobytes()
    except OverflowError:
        raise InvalidArgument(f"input '{tensor.name}' has a value that is no {tensor.datatype}") from None
    return view(data, dtype, tuple(tensor.shape), tensor.name)


def _dtype(tensor: service_pb2.ModelInferRequest.InferInputTensor) -> np.dtype[Any]:
    try:
        return DTYPES[tensor.datatype]
    except KeyError:
        raise InvalidArgument(f"input '{tensor.name}' has the unknown datatype '{tensor.datatype[:64]}'") from None


def _objects(tensor: service_pb2.ModelInferRequest.InferInputTensor, values: list[bytes]) -> Array:
    shape = tuple(tensor.shape)
    if min(shape, default=0) < 0 or prod(shape) != len(values):
        raise InvalidArgument(f"input '{tensor.name}' has {len(values)} elements for the shape {list(shape)}")
    return np.array(values, object).reshape(shape)


def _texts(name: str, data: bytes) -> list[bytes]:
    """BYTES elements: each its length in four bytes, then itself."""
    found, at = [], 0
    while at < len(data):
        [size] = struct.unpack_from("<I", data, at) if at + 4 <= len(data) else [len(data)]
        at += 4 + size
        if at > len(data):
            raise InvalidArgument(f"input '{name}' ends in the middle of an element")
        found.append(data[at - size : at])
    return found
