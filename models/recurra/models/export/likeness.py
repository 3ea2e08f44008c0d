"""A traced graph against the model in Keras: from the same inputs and states both give the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from recurra.models.graph import dtype_of
from recurra.models.provider import ERRORS
from recurra.models.refusal import ModelRefused
from recurra.models.selftest import compare
from recurra.models.session import Session
from recurra.models.signature import Array


def check(
    model: ModelProto, shapes: Sequence[Sequence[int]], in_keras: Callable[[Sequence[Array]], Sequence[Array]]
) -> None:
    """Raises ModelRefused if the graph's outputs are not what `in_keras` gives for random inputs of these `shapes`."""
    random = np.random.default_rng(0)
    values = zip(model.graph.input, shapes, strict=True)
    inputs = {value.name: _drawn(shape, dtype_of(value), random) for value, shape in values}
    session = Session(model.SerializeToString(), "cpu")
    fed = {name: inputs[name] for name in session.inputs}
    try:
        found = session.run([value.name for value in model.graph.output], fed)
    except ERRORS as failure:
        raise ModelRefused(f"the graph does not run: {' '.join(str(failure).split())[:300]}") from failure
    error, good = compare(found, in_keras(list(inputs.values())))
    if not good:
        raise ModelRefused(
            f"the graph differs from the model in Keras by {error:.2g}: a layer is random, no float32, or comes out of "
            "tf2onnx wrong; export a model without it, and please report a layer of Keras' own"
        )


def _drawn(shape: Sequence[int], dtype: np.dtype[Any], random: np.random.Generator) -> Array:
    if dtype.kind == "f":
        return random.normal(size=shape).astype(dtype)
    array = random.integers(0, 1, shape, endpoint=True)
    if len(shape) > 1:  # where a chunk starts with masked timesteps, it differs from Keras by design
        array[:, [0, -1]] = 1
    return array.astype(dtype)
