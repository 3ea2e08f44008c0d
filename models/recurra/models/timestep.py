"""One timestep of a native node, by ONNX's equations, as the body of a Scan."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from recurra.models.activation import Activation
from recurra.models.graph import attribute
from recurra.models.names import unused

_CELL: Final = 2  # of an LSTM's activations, the one that the cell state goes through
BLOCKS: Final = {"RNN": 1, "GRU": 3, "LSTM": 4}


class Timestep:
    """One timestep: from the states and X W' (N, G*H) to the states and Y (N, H)."""

    def __init__(
        self, node: NodeProto, functions: list[Activation], *, prefix: str, taken: set[str], units: int, dtype: int
    ) -> None:
        self.states = 2 if node.op_type == "LSTM" else 1
        self._prefix = prefix
        self._taken = taken
        self._node = node
        self._units = units
        self._dtype = dtype
        self._functions = functions
        self._nodes: list[NodeProto] = []
        clip = attribute(node, "clip", 0.0)
        self._clip = float(clip) if clip else 0.0

    def build(self, recurrent: str, inner: str, peepholes: str, *, masked: bool) -> GraphProto:
        """The graph; it reads R' (H, G*H), the inner bias (G*H,) and the peepholes (3*H,) from outside."""
        kinds = ["h", "c"][: self.states]
        olds = [self._name(kind) for kind in kinds]
        product, alive = self._name("xw"), self._name("alive")
        build = {"RNN": self._rnn, "GRU": self._gru, "LSTM": self._lstm}[self._node.op_type]
        news = build(olds, product, recurrent, inner if self._node.op_type == "GRU" else peepholes)
        output = news[0]
        if masked:
            zero = self._number(0.0)
            output = self._add("Where", [alive, output, zero])
            news = [self._add("Where", [alive, new, old]) for new, old in zip(news, olds, strict=True)]
        taking = [self._value(old, self._units) for old in olds]
        taking.append(self._value(product, self._units * BLOCKS[self._node.op_type]))
        if masked:
            taking.append(helper.make_tensor_value_info(alive, TensorProto.BOOL, [None, 1]))
        giving = [self._value(self._add("Identity", [name]), self._units) for name in (*news, output)]
        return helper.make_graph(self._nodes, "timestep", taking, giving)

    def _name(self, what: str) -> str:
        return unused(f"{self._prefix}/{what}", self._taken)

    def _add(self, op: str, inputs: list[str], **settings: Any) -> str:
        name = self._name(op.lower())
        self._nodes.append(helper.make_node(op, inputs, [name], **settings))
        return name

    def _number(self, value: float) -> str:
        array = np.asarray(value, helper.tensor_dtype_to_np_dtype(self._dtype))
        return self._add("Constant", [], value=numpy_helper.from_array(array))

    def _value(self, name: str, size: int) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, self._dtype, [None, size])

    def _activated(self, name: str, function: int) -> str:
        if self._clip and function < _CELL:  # the runtime's own nodes clip what goes into a gate, and no more
            name = self._add("Clip", [name, self._number(-self._clip), self._number(self._clip)])
        result = self._name(self._functions[function].name)
        self._nodes += self._functions[function].nodes(name, result, self._dtype)
        return result

    def _split(self, name: str, count: int, axis: int = 1) -> list[str]:
        parts = [self._name("part") for _ in range(count)]
        sizes = self._add("Constant", [], value=numpy_helper.from_array(np.full(count, self._units, np.int64)))
        self._nodes.append(helper.make_node("Split", [name, sizes], parts, axis=axis))
        return parts

    def _rnn(self, olds: list[str], product: str, recurrent: str, _: str) -> list[str]:
        return [self._activated(self._add("Add", [product, self._add("MatMul", [olds[0], recurrent])]), 0)]

    def _gru(self, olds: list[str], product: str, recurrent: str, inner: str) -> list[str]:
        """Gates z r h; the reset gate works on the state, or on its product (linear_before_reset)."""
        (old,) = olds
        reset_last = attribute(self._node, "linear_before_reset", 0)
        if reset_last:
            ours = self._add("MatMul", [old, recurrent])
            ours = self._add("Add", [ours, inner]) if inner else ours
            (z_in, r_in, h_in), (z_own, r_own, h_own) = self._split(product, 3), self._split(ours, 3)
        else:
            product = self._add("Add", [product, inner]) if inner else product
            z_in, r_in, h_in = self._split(product, 3)
            z_weights, r_weights, h_weights = self._split(recurrent, 3)
            z_own, r_own = self._add("MatMul", [old, z_weights]), self._add("MatMul", [old, r_weights])
        z = self._activated(self._add("Add", [z_in, z_own]), 0)
        r = self._activated(self._add("Add", [r_in, r_own]), 0)
        if reset_last:
            h_own = self._add("Mul", [r, h_own])
        else:
            h_own = self._add("MatMul", [self._add("Mul", [r, old]), h_weights])
        candidate = self._activated(self._add("Add", [h_in, h_own]), 1)
        kept = self._add("Mul", [z, old])
        rest = self._add("Sub", [self._number(1.0), z])
        return [self._add("Add", [self._add("Mul", [rest, candidate]), kept])]

    def _lstm(self, olds: list[str], product: str, recurrent: str, peepholes: str) -> list[str]:
        """Gates i o f c, peepholes i o f."""
        h, c = olds
        i, o, f, g = self._split(self._add("Add", [product, self._add("MatMul", [h, recurrent])]), 4)
        if peepholes:
            i_peep, o_peep, f_peep = self._split(peepholes, 3, axis=0)
            i = self._add("Add", [i, self._add("Mul", [i_peep, c])])
            f = self._add("Add", [f, self._add("Mul", [f_peep, c])])
        i, g = self._activated(i, 0), self._activated(g, 1)
        coupled = attribute(self._node, "input_forget", 0) == 1
        f = self._add("Sub", [self._number(1.0), i]) if coupled else self._activated(f, 0)
        new = self._add("Add", [self._add("Mul", [f, c]), self._add("Mul", [i, g])])
        if peepholes:
            o = self._add("Add", [o, self._add("Mul", [o_peep, new])])
        o = self._activated(o, 0)
        return [self._add("Mul", [o, self._activated(new, _CELL)]), new]
