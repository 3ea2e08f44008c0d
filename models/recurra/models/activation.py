"""The activations of native nodes, as ops of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from recurra.models.graph import GATES, attribute

DEFAULTS: Final[Mapping[str, tuple[str, ...]]] = {
    "RNN": ("tanh",),
    "GRU": ("sigmoid", "tanh"),
    "LSTM": ("sigmoid", "tanh", "tanh"),
}

# Default alpha and beta of those that take them.
_ALPHA: Final = {
    "affine": 1.0,
    "leakyrelu": 0.01,
    "thresholdedrelu": 1.0,
    "scaledtanh": 1.0,
    "hardsigmoid": 0.2,
    "elu": 1.0,
}
_BETA: Final = {"affine": 0.0, "scaledtanh": 1.0, "hardsigmoid": 0.5}
_OPS: Final = {
    "relu": "Relu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "leakyrelu": "LeakyRelu",
    "thresholdedrelu": "ThresholdedRelu",
    "hardsigmoid": "HardSigmoid",
    "elu": "Elu",
    "softsign": "Softsign",
    "softplus": "Softplus",
}


@dataclass(frozen=True)
class Activation:
    """One activation, in lower case, and its numbers."""

    name: str
    alpha: float
    beta: float

    def nodes(self, source: str, result: str, dtype: int) -> list[NodeProto]:
        """From `source` to `result`; `dtype` is ONNX's number of their type."""
        if self.name in _OPS:
            settings: dict[str, Any] = {"alpha": self.alpha} if self.name in _ALPHA else {}
            if self.name in _BETA:
                settings["beta"] = self.beta
            return [helper.make_node(_OPS[self.name], [source], [result], **settings)]
        inner, outer = f"{result}/inner", f"{result}/outer"
        alpha, beta = (_number(f"{result}/{key}", getattr(self, key), dtype) for key in ("alpha", "beta"))
        if self.name == "affine":  # alpha * x + beta
            return [
                alpha,
                beta,
                helper.make_node("Mul", [source, alpha.output[0]], [inner]),
                helper.make_node("Add", [inner, beta.output[0]], [result]),
            ]
        return [  # alpha * tanh(beta * x)
            alpha,
            beta,
            helper.make_node("Mul", [source, beta.output[0]], [inner]),
            helper.make_node("Tanh", [inner], [outer]),
            helper.make_node("Mul", [outer, alpha.output[0]], [result]),
        ]


def activations(node: NodeProto) -> list[Activation]:
    """Those of a native node, one direction after the other; numbers go to those that take them, in order."""
    directions = 2 if attribute(node, "direction", "forward") == "bidirectional" else 1
    given = [name.decode().lower() for name in attribute(node, "activations", [])]
    names = given or list(DEFAULTS[node.op_type]) * directions
    assert len(names) == GATES[node.op_type] * directions
    alphas, betas = (iter(attribute(node, f"activation_{key}", [])) for key in ("alpha", "beta"))
    return [
        Activation(
            name,
            next(alphas, _ALPHA[name]) if name in _ALPHA else 0.0,
            next(betas, _BETA[name]) if name in _BETA else 0.0,
        )
        for name in names
    ]


def _number(name: str, value: float, dtype: int) -> NodeProto:
    array = np.asarray(value, helper.tensor_dtype_to_np_dtype(dtype))
    tensor: TensorProto = numpy_helper.from_array(array)
    return helper.make_node("Constant", [], [name], value=tensor)
