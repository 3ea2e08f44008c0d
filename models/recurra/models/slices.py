"""Slices relieved of the axes that they leave whole: exporters name them all, and shape inference then loses a size."""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from recurra.models.graph import subgraphs
from recurra.models.names import all_names, unused
from recurra.models.sizes import Sizes

_FAR: Final = 2**31 - 1  # an end from here on is that of the axis
_INPUTS: Final = ("starts", "ends", "axes", "steps")


def trim(graph: GraphProto) -> None:
    """Does so at any depth, in place; a Slice that gives all it takes becomes an Identity."""
    _trim([graph], all_names(graph))


def _trim(graphs: list[GraphProto], taken: set[str]) -> None:
    slices = [node for node in graphs[-1].node if node.op_type == "Slice"]
    if slices:
        _trim_each(slices, graphs, taken)
    for node in graphs[-1].node:
        for sub in subgraphs(node):
            _trim([*graphs, sub], taken)


def _trim_each(slices: list[NodeProto], graphs: list[GraphProto], taken: set[str]) -> None:
    sizes = Sizes(graphs, {})
    for node in slices:
        kept = _kept(node, sizes)
        if kept is not None:
            names = [unused(f"{node.output[0]}/{what}", taken) for what in _INPUTS[: 4 if kept else 0]]
            columns = zip(names, np.array(kept, np.int64).T, strict=True)
            graphs[-1].initializer.extend(numpy_helper.from_array(column, name) for name, column in columns)
            op = "Slice" if kept else "Identity"
            node.CopyFrom(helper.make_node(op, [node.input[0], *names], [node.output[0]], name=node.name))


def _kept(node: NodeProto, sizes: Sizes) -> list[tuple[int, int, int, int]] | None:
    """Start, end, axis and step of each axis that is cut; None where all are, or where it is not known."""
    starts, ends, axes, steps = (sizes.numbers(node.input[i]) if i < len(node.input) else [] for i in range(1, 5))
    if starts is None or ends is None or axes is None or steps is None:
        return None
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    found = list(zip(starts, ends, axes, steps, strict=True))
    kept = [each for each in found if each[0] or each[1] < _FAR or each[3] != 1]
    return kept if len(kept) < len(found) else None
