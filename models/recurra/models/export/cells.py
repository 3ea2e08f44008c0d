"""What PyTorch's exporter lacks to take loops over nn.GRUCell and nn.RNNCell under torch.jit.script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from onnx import TensorProto
from torch.onnx import register_custom_op_symbolic, unregister_custom_op_symbolic

# The graph that a symbolic writes to, and its values, have no public types.
Graph = Any
Value = Any

_INT64: Final = int(TensorProto.INT64)
_BOOL: Final = int(TensorProto.BOOL)


@contextmanager
def cells_known(opset: int) -> Iterator[None]:
    """The exporter can take them meanwhile."""
    for name, symbolic in _SYMBOLICS.items():
        register_custom_op_symbolic(name, symbolic, opset)
    try:
        yield
    finally:
        for name in _SYMBOLICS:
            unregister_custom_op_symbolic(name, opset)


def _gru(g: Graph, x: Value, h: Value, *weights: Value) -> Value:
    """Gates r z n: h' = n + z (h - n)."""
    ours, theirs = (g.op("Split", each, axis_i=1, outputs=3) for each in _products(g, x, h, *weights))
    r, z = (g.op("Sigmoid", g.op("Add", ours[gate], theirs[gate])) for gate in (0, 1))
    n = g.op("Tanh", g.op("Add", ours[2], g.op("Mul", r, theirs[2])))
    return g.op("Add", n, g.op("Mul", z, g.op("Sub", h, n)))


def _rnn(activation: str) -> Callable[..., Value]:
    return lambda g, x, h, *weights: g.op(activation, g.op("Add", *_products(g, x, h, *weights)))


def _products(g: Graph, x: Value, h: Value, *weights: Value) -> list[Value]:
    """W_ih x + b_ih and W_hh h + b_hh, (N, gates * H). The biases may be None."""
    w_ih, w_hh, b_ih, b_hh = weights
    given = [(x, w_ih, b_ih), (h, w_hh, b_hh)]
    return [g.op("Gemm", *(each for each in side if not each.node().mustBeNone()), transB_i=1) for side in given]


def _contains(g: Graph, values: Value, element: Value) -> Value:
    """Whether a computed number is in a constant tuple: the cells ask `hx.dim() in (1, 2)`."""
    equal = g.op("Cast", g.op("Equal", values, element), to_i=_INT64)
    return g.op("Cast", g.op("ReduceMax", equal, keepdims_i=0), to_i=_BOOL)


_SYMBOLICS: Final = {
    "aten::gru_cell": _gru,
    "aten::rnn_tanh_cell": _rnn("Tanh"),
    "aten::rnn_relu_cell": _rnn("Relu"),
    "aten::__contains_": _contains,
}
