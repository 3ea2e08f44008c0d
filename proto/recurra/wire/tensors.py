"""Tensors to and from numpy, without a copy where the bytes allow it."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra.v1 import tensor_pb2
from recurra.wire.errors import InvalidArgument

Array = NDArray[Any]

_DTYPES: Final[dict[tensor_pb2.DataType.ValueType, np.dtype[Any]]] = {
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    tensor_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DATA_TYPE_INT8: np.dtype("i1"),
    tensor_pb2.DATA_TYPE_INT16: np.dtype("<i2"),
    tensor_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    tensor_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
    tensor_pb2.DATA_TYPE_UINT16: np.dtype("<u2"),
    tensor_pb2.DATA_TYPE_UINT32: np.dtype("<u4"),
    tensor_pb2.DATA_TYPE_UINT64: np.dtype("<u8"),
    tensor_pb2.DATA_TYPE_BOOL: np.dtype("?"),
}
_CODES: Final = {dtype: code for code, dtype in _DTYPES.items()}
_MAX_AXES: Final = 32  # numpy 1's limit


def code_of(dtype: np.dtype[Any]) -> tensor_pb2.DataType.ValueType:
    """The wire's code of a numpy dtype. Raises InvalidArgument for one that has none."""
    try:
        return _CODES.get(dtype) or _CODES[dtype.newbyteorder("<")]
    except KeyError:
        raise InvalidArgument(f"dtype {dtype} is not supported; use one of {', '.join(map(str, _CODES))}") from None


def dtype_of(code: tensor_pb2.DataType.ValueType) -> np.dtype[Any]:
    """The numpy dtype of a wire code. Raises InvalidArgument for an unknown one."""
    try:
        return _DTYPES[code]
    except KeyError:
        raise InvalidArgument(f"data type {code} is unknown to this server") from None


def to_tensor(array: Array, name: str = "") -> tensor_pb2.Tensor:
    """A message with `array`'s values (one copy). Raises InvalidArgument for an unsupported dtype."""
    tensor = tensor_pb2.Tensor()
    fill(tensor, array, name)
    return tensor


def fill(tensor: tensor_pb2.Tensor, array: Array, name: str) -> None:
    """As to_tensor, into a message that is there, such as a part of another one."""
    code = code_of(array.dtype)
    tensor.name, tensor.dtype = name, code
    tensor.shape.extend(array.shape)
    tensor.data = array.astype(_DTYPES[code], copy=False).tobytes()


def to_array(tensor: tensor_pb2.Tensor) -> Array:
    """A read-only view of the message's bytes.

    Raises InvalidArgument for an unknown dtype, a negative size, too many axes, or bytes that do not fill the shape.
    """
    return view(tensor.data, dtype_of(tensor.dtype), tuple(tensor.shape), tensor.name)


def view(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> Array:
    """A read-only view of bytes, little-endian and row by row. Raises InvalidArgument as to_array."""
    if len(shape) > _MAX_AXES:
        raise InvalidArgument(f"tensor '{name}' has {len(shape)} axes; at most {_MAX_AXES} are possible")
    if prod(shape) * dtype.itemsize != len(data) or min(shape, default=0) < 0:
        raise InvalidArgument(
            f"tensor '{name}' has {len(data)} bytes, but {dtype} of shape {list(shape)} needs "
            f"{prod(shape) * dtype.itemsize}"
        )
    try:
        array = np.frombuffer(data, dtype).reshape(shape)
    except ValueError:  # empty, but its other sizes are beyond what can be addressed
        raise InvalidArgument(f"tensor '{name}' of shape {list(shape)} is too large") from None
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise InvalidArgument(f"tensor '{name}' is boolean, but has bytes other than 0 and 1")
    return array


def to_arrays(tensors: Iterable[tensor_pb2.Tensor]) -> dict[str, Array]:
    """Views by name. Raises InvalidArgument as to_array, and for a name that comes twice."""
    arrays: dict[str, Array] = {}
    for tensor in tensors:
        if tensor.name in arrays:
            raise InvalidArgument(f"tensor '{tensor.name}' comes twice")
        arrays[tensor.name] = to_array(tensor)
    return arrays
