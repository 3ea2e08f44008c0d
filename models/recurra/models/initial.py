"""The initial state that a graph gives a node, evaluated."""

from __future__ import annotations

from itertools import count

import numpy as np
from onnx import ModelProto, helper

from recurra.models.graph import ancestors, data_inputs, dims_of, dtype_of
from recurra.models.refusal import ModelRefused
from recurra.models.session import ERRORS, Session
from recurra.models.signature import Array


def evaluate(model: ModelProto, name: str, where: str) -> Array:
    """The fresh state (D, H) of one session that the value `name` (D, N, H) of the graph holds.

    It must not depend on the data; that it does not depend on sizes either is checked by running at several.
    Raises ModelRefused if it is no such state, or differs between the rows of a batch.
    """
    session = Session(_slice(model, name), "cpu")
    values = [_run(session, model, name, sizes) for sizes in (count(2), count(3, 2))]
    rows = [row for value in values for row in _rows(value, where)]
    if any(not np.array_equal(row, rows[0], equal_nan=True) for row in rows):
        raise ModelRefused(
            f"{where} starts from a state that is frozen in the file and differs between the rows of a batch, as a "
            "Keras model exported with stateful=True has; export it with stateful=False"
        )
    return np.ascontiguousarray(rows[0])


def _slice(model: ModelProto, name: str) -> bytes:
    """Only the part of the model that makes `name`."""
    graph = model.graph
    nodes, names = ancestors(graph, name, through_shapes=True)
    inputs = [value for value in data_inputs(graph) if value.name in names]
    weights = [tensor for tensor in graph.initializer if tensor.name in names]
    if not nodes:  # the runtime does not give an initializer out as it is
        nodes = [helper.make_node("Identity", [name], [f"{name}/value"])]
        name = f"{name}/value"
    output = helper.make_empty_tensor_value_info(name)
    part = helper.make_graph(nodes, "initial", inputs, [output], weights)
    imports = list(model.opset_import)
    return helper.make_model(part, opset_imports=imports, ir_version=model.ir_version).SerializeToString()


def _run(session: Session, model: ModelProto, name: str, sizes: count[int]) -> Array:
    """The value for zeros of growing sizes: one for each name, a new one for each that has none."""
    named: dict[str, int] = {}
    feed, plain = {}, {}
    for value in data_inputs(model.graph):
        if value.name in session.inputs:
            dims = dims_of(value)
            shape = [d if isinstance(d, int) else named.setdefault(d or f"?{len(named)}", next(sizes)) for d in dims]
            feed[value.name] = np.zeros(shape, dtype_of(value))
            plain[value.name] = np.zeros([d if isinstance(d, int) else 2 for d in dims], dtype_of(value))
    try:
        return session.run(session.outputs, feed)[0]
    except ERRORS:
        try:  # sizes without a name may have to be equal
            return session.run(session.outputs, plain)[0]
        except ERRORS as error:
            raise ModelRefused(f"the initial state '{name}' cannot be evaluated: {error}") from error


def _rows(value: Array, where: str) -> list[Array]:
    if value.ndim != 3:  # noqa: PLR2004
        raise ModelRefused(f"{where} starts from a state of shape {list(value.shape)}; it must be (directions, N, H)")
    return [value[:, index] for index in range(value.shape[1])]
