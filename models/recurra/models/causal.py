"""What a causal convolution sees in front of a chunk: the file pads with a constant there, a session has the samples.

A Pad in front of the time axis, and behind it nothing, is where a chunk is taken for the beginning of all time. What it
adds becomes a state: the last samples that came in, and the constant for a new session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from recurra.models import initial
from recurra.models.expose import BATCH
from recurra.models.graph import STANDARD, attribute, constant, constants
from recurra.models.names import all_names, unused
from recurra.models.pairs import Pair
from recurra.models.refusal import ModelRefused
from recurra.models.signature import Array

_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Padding:
    """One such Pad.

    Attributes:
        output: what it makes.
        axis, batch_axis: of time and of the batch in its input.
        fresh: of one session, the constant as often as it pads.

    """

    output: str
    layer: str
    axis: int
    batch_axis: int
    fresh: Array


def find(model: ModelProto) -> list[Padding]:
    """All of them at the top level; the graph must be as it came, since it is run to see which axes are free."""
    nodes = [node for node in model.graph.node if node.op_type == "Pad" and node.domain in STANDARD]
    fixed = constants(model.graph) if nodes else {}
    found = []
    for node in (node for node in nodes if len(node.input) > 1):
        tensor = fixed.get(node.input[1])
        if tensor is None or _in_front(constant(tensor)):  # to run the graph costs: not where the file says otherwise
            found.append(_padding(model, node))
    return [each for each in found if each]


def _in_front(pads: Array) -> bool:
    """Whether it is one axis that is padded, in front alone."""
    return np.count_nonzero(pads) == 1 and bool(pads[: len(pads) // 2].any())


def expose(graph: GraphProto, paddings: Sequence[Padding]) -> list[Pair]:
    """Makes a state of each, in place."""
    taken, names = all_names(graph), set[str]()
    pairs = []
    for each in paddings:
        name = unused(f"{each.layer}/context", names)
        before, after = unused(name, taken), unused(f"{name}/next", taken)
        cut = [unused(f"{name}/{what}", taken) for what in ("from", "to", "axis")]
        count = each.fresh.shape[each.axis - (each.batch_axis < each.axis)]
        for bound, number in zip(cut, (-count, _END, each.axis), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), bound))
        place = next(index for index, node in enumerate(graph.node) if each.output in node.output)
        data = graph.node[place].input[0]
        graph.node[place].CopyFrom(helper.make_node("Concat", [before, data], [each.output], axis=each.axis))
        graph.node.insert(place + 1, helper.make_node("Slice", [each.output, *cut], [after]))
        dims: list[int | str] = list(each.fresh.shape)
        dims.insert(each.batch_axis, BATCH)
        element = helper.np_dtype_to_tensor_dtype(each.fresh.dtype)
        graph.input.append(helper.make_tensor_value_info(before, element, dims))
        graph.output.append(helper.make_tensor_value_info(after, element, dims))
        pairs.append(Pair(name, each.layer, before, after, each.batch_axis, each.fresh, "lifted"))
    return pairs


def _padding(model: ModelProto, node: NodeProto) -> Padding | None:
    if attribute(node, "mode", "constant") != "constant" or any(node.input[3:]):
        return None
    try:
        values = initial.evaluate(model, [model.graph], [name for name in node.input[:3] if name])
    except ModelRefused:
        return None
    data, pads = values[node.input[0]], values[node.input[1]].values
    rank = len(data.groups)
    if not rank or pads[0].shape != (2 * rank,) or not np.array_equal(*pads):
        return None
    if not _in_front(pads[0]):
        return None
    (padded,), free = np.flatnonzero(pads[0]), [axis for axis, group in enumerate(data.groups) if group]
    others = [axis for axis in free if axis != padded]
    # Along an axis that the input leaves free, and of the others the batch alone is free.
    if padded not in free or pads[0][padded] < 1 or len(others) != 1:
        return None
    axis, shape = int(padded), list(data.values[0].shape)
    shape[axis] = int(pads[0][axis])
    del shape[others[0]]
    filled = values[node.input[2]].values[0].reshape(()) if any(node.input[2:3]) else 0
    return Padding(node.output[0], _layer(node), axis, others[0], np.full(shape, filled, data.values[0].dtype))


def _layer(node: NodeProto) -> str:
    """The layer that pads, as the file names it: "model/causal/Pad" is of the layer causal."""
    parts = [part for part in node.name.split("/") if part and not part.startswith(("Pad", "pad", "Const"))]
    return parts[-1] if parts else "padding"
