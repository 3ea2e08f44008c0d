"""What a graph starts its carried values from, evaluated: the fresh state of one session, and its batch axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Final

import numpy as np
from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from recurra.models.graph import ancestors, data_inputs, dims_of, dtype_of
from recurra.models.provider import ERRORS
from recurra.models.refusal import ModelRefused
from recurra.models.session import Session
from recurra.models.signature import Array

_SCALES: Final = (1, 160)
_MOST_VALUES: Final = 2**26  # of an input; images, say, at the larger scale

# Sizes of a graph input that are one: those of one name, and each that has none. Its name, or its number.
Group = str


@dataclass(frozen=True)
class Initial:
    """A value at two sets of sizes.

    Attributes:
        groups: for each axis the sizes of the inputs that it follows; None where it is fixed.

    """

    values: tuple[Array, Array]
    groups: tuple[Group | None, ...]

    def fresh(self, batch: int | None, where: str) -> Array:
        """One session's part. Raises ModelRefused if it differs between the rows of a batch."""
        if batch is None:
            return self.values[0]
        rows = [np.take(value, index, axis=batch) for value in self.values for index in range(value.shape[batch])]
        shapes = {row.shape for row in rows}
        if len(shapes) > 1:
            raise ModelRefused(
                f"{where} carries a state with a free size beside the batch ({list(self.values[0].shape)} for one "
                "input); export the model with all sizes but batch and time fixed"
            )
        if any(not np.array_equal(row, rows[0], equal_nan=row.dtype.kind == "f") for row in rows):
            raise ModelRefused(
                f"{where} starts from a state that is frozen in the file and differs between the rows of a batch, as "
                "a Keras model exported with stateful=True has; export it with stateful=False"
            )
        return np.ascontiguousarray(rows[0]).reshape(rows[0].shape)


def evaluate(model: ModelProto, graphs: Sequence[GraphProto], names: Sequence[str]) -> dict[str, Initial]:
    """The values called `names` for inputs of zeros at two sets of sizes.

    Args:
        graphs: the model's graph, and the branches in it that lead to the one where `names` are.

    Raises:
        ModelRefused: they cannot be computed.

    """
    wanted = list(dict.fromkeys(names))
    session = Session(_slice(model, graphs, wanted), "cpu")
    inputs = [value for value in data_inputs(model.graph) if value.name in session.inputs]
    failure: Exception | None = None
    # Sizes without a name may be any, or may have to be equal between inputs; a convolution may need large ones.
    for scale, alone in product(_SCALES, (True, False)):
        groups = _groups(inputs, alone=alone)
        sizes = {
            group: (scale * (2 + index), scale * (3 + 2 * index))
            for index, group in enumerate(dict.fromkeys(groups.values()))
        }
        try:
            runs = [
                _run(session, inputs, groups, {group: pair[turn] for group, pair in sizes.items()}) for turn in (0, 1)
            ]
        except ERRORS as error:
            failure = failure or error
            continue
        followed = {pair: group for group, pair in sizes.items()}
        return {name: _initial((runs[0][i], runs[1][i]), followed) for i, name in enumerate(wanted)}
    raise ModelRefused(f"the initial state '{wanted[0]}' cannot be evaluated: {failure}") from failure


def _initial(values: tuple[Array, Array], pairs: Mapping[tuple[int, int], Group]) -> Initial:
    if values[0].ndim != values[1].ndim:
        return Initial(values, ())
    return Initial(values, tuple(pairs.get(sizes) for sizes in zip(values[0].shape, values[1].shape, strict=True)))


def _slice(model: ModelProto, graphs: Sequence[GraphProto], wanted: Sequence[str]) -> bytes:
    """Only the part of the model that makes the `wanted` names, flat."""
    nodes, names = ancestors(graphs, wanted, through_shapes=True)
    inputs = [value for value in data_inputs(model.graph) if value.name in names]
    weights = [tensor for graph in graphs for tensor in graph.initializer if tensor.name in names]
    # The runtime does not give an initializer out as it is.
    given = [f"{name}/value" for name in wanted]
    nodes += [helper.make_node("Identity", [name], [result]) for name, result in zip(wanted, given, strict=True)]
    outputs = [helper.make_empty_tensor_value_info(name) for name in given]
    part = helper.make_graph(nodes, "initial", inputs, outputs, weights)
    imports = list(model.opset_import)
    return helper.make_model(part, opset_imports=imports, ir_version=model.ir_version).SerializeToString()


def _groups(inputs: Sequence[ValueInfoProto], *, alone: bool) -> dict[tuple[str, int], Group]:
    """The group of each size that is free; one without a name is `alone`, or goes with those of the same axis."""
    return {
        (value.name, axis): size or (f"?{index}:{axis}" if alone else f"?{axis}")
        for index, value in enumerate(inputs)
        for axis, size in enumerate(dims_of(value))
        if not isinstance(size, int)
    }


def _run(
    session: Session,
    inputs: Sequence[ValueInfoProto],
    groups: Mapping[tuple[str, int], Group],
    sizes: Mapping[Group, int],
) -> list[Array]:
    feed = {}
    for value in inputs:
        dims = [
            each if isinstance(each, int) else sizes[groups[value.name, axis]]
            for axis, each in enumerate(dims_of(value))
        ]
        if prod(dims) > _MOST_VALUES:
            raise ValueError(f"'{value.name}' would have {prod(dims)} values")
        feed[value.name] = np.zeros(dims, dtype_of(value))
    return session.run(session.outputs, feed)
