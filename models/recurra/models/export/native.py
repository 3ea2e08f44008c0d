"""Recurrent layers for which ONNX has a node: each is traced as one operation, and then written as that node."""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from recurra.models.export import legacy
from recurra.models.export.backend import Layer, Tensor, keras, tf
from recurra.models.graph import attribute
from recurra.models.signature import Array

_OPERATION: Final = "CudnnRNNV3"  # has the shapes of all three, and is never run
_DIRECTION: Final = "recurra/direction"
_KINDS: Final = {keras.layers.SimpleRNNCell: "RNN", keras.layers.GRUCell: "GRU", keras.layers.LSTMCell: "LSTM"}
# The node's word for it, with alpha and beta where it has them.
_ACTIVATIONS: Final = {
    keras.activations.tanh: ("Tanh", (), ()),
    keras.activations.sigmoid: ("Sigmoid", (), ()),
    keras.activations.relu: ("Relu", (), ()),
    keras.activations.hard_sigmoid: ("HardSigmoid", (1 / 6,), (0.5,)),
    legacy.hard_sigmoid: ("HardSigmoid", (0.2,), (0.5,)),
}
_LSTM_ORDER: Final = (0, 3, 1, 2)  # ONNX's gates i, o, f, c among Keras' i, f, c, o


class Natives:
    """The cells of one trace that become nodes."""

    def __init__(self) -> None:
        self._cells: list[Layer] = []

    def trace(self, layer: Layer, sequences: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the layer's own loop gives: the last output, all outputs, and the states."""
        values, finals = tf.transpose(tf.cast(sequences, tf.float32), [1, 0, 2]), []
        if layer.go_backwards:
            values = tf.reverse(values, [0])
        before = iter(keras.tree.flatten(states))
        for cell in _cells(layer):
            values, ends = self._operation(cell, values, [next(before) for _ in keras.tree.flatten(cell.state_size)])
            finals += ends
        return ends[0], tf.transpose(values, [1, 0, 2]), keras.tree.pack_sequence_as(states, finals)

    def _operation(self, cell: Layer, inputs: Tensor, before: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        states = [tf.expand_dims(state, 0) for state in before]
        outputs, *after = tf.raw_ops.CudnnRNNV3(
            input=inputs,
            input_h=states[0],
            input_c=states[-1],
            params=tf.zeros([1]),
            sequence_lengths=tf.zeros([1], tf.int32),
            rnn_mode="lstm",
            is_training=False,
            seed=len(self._cells),
        )[:3]
        self._cells.append(cell)
        return outputs, [tf.squeeze(state, 0) for state in after[: len(states)]]

    def write(self, graph: GraphProto) -> None:
        """Puts the nodes in the place of the operations."""
        for node in [each for each in graph.node if each.op_type == _OPERATION]:
            _replace(graph, node, self._cells[attribute(node, "seed")])
        if self._cells:
            graph.initializer.append(numpy_helper.from_array(np.array([1]), _DIRECTION))


def has_node(layer: Layer, mask: Tensor | None) -> bool:
    """Whether ONNX has nodes for a layer: of Keras' own cells, with activations that it knows, and without a mask."""
    own = type(layer).inner_loop.__module__.partition(".")[0] == "keras"
    return own and mask is None and all(map(_is_known, _cells(layer)))


def _cells(layer: Layer) -> list[Layer]:
    cell = layer.cell
    return list(cell.cells) if type(cell) is keras.layers.StackedRNNCells else [cell]


def _is_known(cell: Layer) -> bool:
    if type(cell) not in _KINDS or cell.compute_dtype != "float32":
        return False
    return all(each in _ACTIVATIONS for each in _activations(cell))


def _replace(graph: GraphProto, node: NodeProto, cell: Layer) -> None:
    kind, states = _KINDS[type(cell)], 2 if _is_lstm(cell) else 1
    weights = {f"{node.name}/{key}": array for key, array in _weights(cell).items()}
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    words, alphas, betas = zip(*(_ACTIVATIONS[each] for each in _activations(cell)), strict=True)
    no_bias_no_lengths = [""] * (4 - len(weights))
    made = helper.make_node(
        kind,
        [node.input[0], *weights, *no_bias_no_lengths, *node.input[1 : 1 + states]],
        [f"{node.name}/sequence", *node.output[1 : 1 + states]],
        name=node.name,
        hidden_size=cell.units,
        activations=words,
        activation_alpha=[number for each in alphas for number in each] or None,
        activation_beta=[number for each in betas for number in each] or None,
        linear_before_reset=int(cell.reset_after) if kind == "GRU" else None,
    )
    flat = helper.make_node("Squeeze", [f"{node.name}/sequence", _DIRECTION], [node.output[0]])
    place = list(graph.node).index(node)
    graph.node.remove(node)
    graph.node.insert(place, flat)
    graph.node.insert(place, made)


def _is_lstm(cell: Layer) -> bool:
    return type(cell) is keras.layers.LSTMCell


def _activations(cell: Layer) -> list[object]:
    """In the node's order."""
    gates = [cell.recurrent_activation] if hasattr(cell, "recurrent_activation") else []
    return [*gates, cell.activation, *([cell.activation] if _is_lstm(cell) else [])]


def _weights(cell: Layer) -> dict[str, Array]:
    """W (1, gates*units, features), R (1, gates*units, units) and B (1, 2*gates*units), if there is a bias."""
    gates = cell.kernel.shape[1] // cell.units
    order = _LSTM_ORDER if _is_lstm(cell) else range(gates)

    def ordered(array: Array) -> Array:
        parts = np.split(array, gates, axis=-1)
        return np.concatenate([parts[gate] for gate in order], axis=-1)

    found = {"W": ordered(np.asarray(cell.kernel)).T[None], "R": ordered(np.asarray(cell.recurrent_kernel)).T[None]}
    if cell.use_bias:
        bias = np.asarray(cell.bias)
        both = bias if bias.ndim == 2 else np.stack([bias, np.zeros_like(bias)])  # noqa: PLR2004
        found["B"] = ordered(both).reshape(1, -1)
    return {key: np.ascontiguousarray(array) for key, array in found.items()}
