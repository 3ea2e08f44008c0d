"""Keras models of one timestep: a cell called on an input and its states, which are inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recurra.models.export.backend import Layer, keras
from recurra.models.export.states import State, is_cell, kinds
from recurra.models.export.traced import input_name


def of_cell(cell: Layer, input_shape: Sequence[int | None]) -> Layer:
    """A model that calls `cell` once: (input, *states) to (output, *new states)."""
    if not cell.built:
        cell.build((None, *input_shape))
        cell.built = True
    fresh = _fresh(cell)
    names = iter(kinds(cell, len(keras.tree.flatten(fresh))))
    states = keras.tree.map_structure(
        lambda value: keras.Input(value.shape[1:], dtype=value.dtype, name=next(names).replace("/", "_")), fresh
    )
    inputs = keras.Input(tuple(input_shape), name="input")
    output, news = cell(inputs, states if isinstance(states, list) else [states])
    return keras.Model(
        [inputs, *keras.tree.flatten(states)], [output, *keras.tree.flatten(news)], name=f"{cell.name}_step"
    )


def given_states(model: Layer) -> dict[int, tuple[str, State]]:
    """The states that the model itself takes and gives: by the index of the output, the input's name and the state.

    Such is a state that a cell, or a recurrent layer with return_state, takes straight from an input of the model, and
    whose next value is an output.
    """
    inputs = {id(tensor): input_name(tensor) for tensor in model.inputs}
    found = {}
    for index, tensor in enumerate(model.outputs):
        operation, node_index, position = tensor._keras_history  # noqa: SLF001
        if not (is_cell(operation) or isinstance(operation, keras.layers.RNN)) or position == 0:
            continue
        node = operation._inbound_nodes[node_index]  # noqa: SLF001
        befores, cell = node.input_tensors[1:], getattr(operation, "cell", operation)
        if len(befores) == len(node.output_tensors) - 1 and id(befores[position - 1]) in inputs:
            kind = kinds(cell, len(befores))[position - 1]
            fresh = np.asarray(keras.tree.flatten(_fresh(cell))[position - 1])[0]
            name = inputs.pop(id(befores[position - 1]))
            found[index] = name, State(f"{operation.name}/{kind}", operation.name, fresh)
    return found


def _fresh(cell: Layer) -> Layer:
    """What a cell starts one row from."""
    if hasattr(cell, "get_initial_state"):
        return cell.get_initial_state(batch_size=1)
    return keras.tree.map_structure(lambda size: keras.ops.zeros((1, size), cell.compute_dtype), cell.state_size)
