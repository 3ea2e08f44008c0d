"""Native nodes that the CUDA provider would leave to the CPU, as a Scan of ops that it runs.

One such node costs a copy to the host and back at every call. What a Scan computes is the same: ONNX's equations, gate
by gate. The part that needs no state, X W', is one product over all timesteps in front of the Scan.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from recurra.models.activation import DEFAULTS, Activation, activations
from recurra.models.graph import STANDARD, attribute, constants, is_recurrent, subgraphs
from recurra.models.names import all_names, unused
from recurra.models.timestep import BLOCKS, Timestep

_OLDEST: Final = 13  # the opset since which Split takes its sizes as an input
_X, _W, _R, _B, _LENS, _H, _C, _P = range(8)


def lack(node: NodeProto) -> str:
    """What of a native node the CUDA provider has no kernel for; empty for none."""
    if not is_recurrent(node):
        return ""
    names, usual = tuple(each.name for each in activations(node)), DEFAULTS[node.op_type]
    settings = [each.name for each in node.attribute if each.name in ("clip", "activation_alpha", "activation_beta")]
    if settings:
        return settings[0]
    if set(_groups(names, len(usual))) != {usual}:
        return f"activations other than {', '.join(usual)}"
    if node.op_type == "LSTM" and attribute(node, "input_forget", 0) == 1:
        return "input_forget"
    if node.op_type == "LSTM" and _input(node, _P):
        return "peepholes"
    return "linear_before_reset = 0" if node.op_type == "GRU" and not attribute(node, "linear_before_reset", 0) else ""


def needs(node: NodeProto) -> bool:
    """Whether the CUDA provider has no kernel for a native node as it is."""
    return bool(lack(node))


def rewrite(model: ModelProto) -> int:
    """Replaces all nodes that need it, at any depth, in place; how many. Opsets below 13 are left as they are."""
    if any(entry.domain in STANDARD and entry.version < _OLDEST for entry in model.opset_import):
        return 0
    return _rewrite(model.graph, [], all_names(model.graph))


def _groups(names: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    return [names[start : start + size] for start in range(0, len(names), size)]


def _input(node: NodeProto, index: int) -> str:
    return node.input[index] if index < len(node.input) else ""


def _output(node: NodeProto, index: int) -> str:
    return node.output[index] if index < len(node.output) else ""


def _rewrite(graph: GraphProto, outer: list[GraphProto], taken: set[str]) -> int:
    count = 0
    for index, node in reversed(list(enumerate(graph.node))):
        if needs(node):
            writer = _Writer(node, [graph, *outer], taken)
            del graph.node[index]
            for each in reversed(writer.nodes):
                graph.node.insert(index, each)
            count += 1
            continue
        for sub in subgraphs(node):
            count += _rewrite(sub, [graph, *outer], taken)
    return count


class _Writer:
    """The nodes that stand for one native node."""

    def __init__(self, node: NodeProto, graphs: list[GraphProto], taken: set[str]) -> None:
        self.nodes: list[NodeProto] = []
        self._node = NodeProto()
        self._node.CopyFrom(node)
        self._taken = taken
        self._prefix = unused(f"{node.name or node.op_type}/scan", taken)
        weights = next((found for graph in graphs if (found := constants(graph).get(node.input[_R]))), None)
        self._dtype = weights.data_type if weights else TensorProto.FLOAT
        units = attribute(node, "hidden_size") or (weights.dims[-1] if weights else 0)
        self._units = int(units)
        direction = attribute(node, "direction", "forward")
        reversals = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
        functions = activations(self._node)
        size = len(functions) // len(reversals)
        self._sizes()
        results = [
            self._direction(number, functions[number * size : (number + 1) * size], backwards=backwards)
            for number, backwards in enumerate(reversals)
        ]
        self._join([each[0] for each in results], 0, [0, 1, -1, self._units], axis=1)
        for kind in range(len(results[0]) - 1):
            self._join([each[1 + kind] for each in results], 1 + kind, [1, -1, self._units], axis=0)

    def _name(self, what: str) -> str:
        return unused(f"{self._prefix}/{what}", self._taken)

    def _add(self, op: str, inputs: list[str], what: str, **settings: Any) -> str:
        name = self._name(what)
        self.nodes.append(helper.make_node(op, inputs, [name], **settings))
        return name

    def _constant(self, value: Any, what: str, dtype: Any = np.int64) -> str:
        return self._add("Constant", [], what, value=numpy_helper.from_array(np.asarray(value, dtype)))

    def _float(self, value: float, what: str) -> str:
        return self._constant(value, what, helper.tensor_dtype_to_np_dtype(self._dtype))

    def _sizes(self) -> None:
        """The shape (N, H) of a state, and which timesteps (T, N, 1) are alive where there are lengths."""
        shape = self._add("Shape", [_input(self._node, _X)], "sizes")
        rows = self._add("Gather", [shape, self._constant([1], "second")], "rows")
        self._state_shape = self._add("Concat", [rows, self._constant([self._units], "units")], "state_shape", axis=0)
        self._alive = ""
        lengths = _input(self._node, _LENS)
        if lengths:
            count = self._add("Gather", [shape, self._constant(0, "first")], "timesteps")
            steps = self._add("Range", [self._constant(0, "from"), count, self._constant(1, "by")], "steps")
            steps = self._add("Reshape", [steps, self._constant([-1, 1, 1], "as_steps")], "steps_apart")
            lengths = self._add("Cast", [lengths], "lengths", to=TensorProto.INT64)
            lengths = self._add("Reshape", [lengths, self._constant([1, -1, 1], "as_rows")], "lengths_apart")
            self._alive = self._add("Less", [steps, lengths], "alive")

    def _weight(self, index: int, direction: int, what: str) -> str:
        """One direction's part of W, R, B or P."""
        return self._add("Gather", [_input(self._node, index), self._constant(direction, "of")], what, axis=0)

    def _start(self, index: int, direction: int) -> str:
        if _input(self._node, index):
            return self._weight(index, direction, "start")
        return self._add("Expand", [self._float(0.0, "zero"), self._state_shape], "start")

    def _direction(self, number: int, functions: list[Activation], *, backwards: bool) -> list[str]:
        """Y (T, N, H), then the last states (N, H)."""
        node, op = self._node, self._node.op_type
        weights = self._add("Transpose", [self._weight(_W, number, "w")], "w_turned", perm=[1, 0])
        recurrent = self._add("Transpose", [self._weight(_R, number, "r")], "r_turned", perm=[1, 0])
        product = self._add("MatMul", [_input(node, _X), weights], "xw")
        inner = ""  # the bias that is added behind the product with the state
        if _input(node, _B):
            halves = [self._name("bias_w"), self._name("bias_r")]
            size = BLOCKS[op] * self._units
            split = [self._weight(_B, number, "bias"), self._constant([size, size], "halves")]
            self.nodes.append(helper.make_node("Split", split, halves, axis=0))
            product = self._add("Add", [product, halves[0]], "xw_biased")
            if op == "GRU":
                inner = halves[1]
            else:
                product = self._add("Add", [product, halves[1]], "xw_biased")
        peepholes = self._weight(_P, number, "p") if _input(node, _P) else ""
        prefix = f"{self._prefix}/{number}"
        body = Timestep(node, functions, prefix=prefix, taken=self._taken, units=self._units, dtype=self._dtype)
        graph = body.build(recurrent, inner, peepholes, masked=bool(self._alive))
        starts = [self._start(index, number) for index in (_H, _C)[: body.states]]
        results = [*(self._name("last") for _ in starts), self._name("y")]
        scanned = [product, *([self._alive] if self._alive else [])]
        self.nodes.append(
            helper.make_node(
                "Scan",
                [*starts, *scanned],
                results,
                name=self._name("time"),
                body=graph,
                num_scan_inputs=len(scanned),
                scan_input_directions=[int(backwards)] * len(scanned),
                scan_output_directions=[int(backwards)],
            )
        )
        return [results[-1], *results[:-1]]

    def _join(self, parts: list[str], output: int, shape: list[int], axis: int) -> None:
        """The directions side by side, as an output of the node."""
        name = _output(self._node, output)
        if name:
            parts = [self._add("Reshape", [part, self._constant(shape, "shape")], "apart") for part in parts]
            self.nodes.append(helper.make_node("Concat", parts, [name], axis=axis))
