"""Native nodes with layout=1, which ONNX Runtime does not run, turned into layout=0 between transposes."""

from __future__ import annotations

from typing import Final

from onnx import GraphProto, NodeProto, helper

from recurra.models.graph import attribute, is_recurrent, subgraphs
from recurra.models.names import all_names, unused

# By position: an input's and an output's axes as layout=0 orders them, and back.
_SWAP: Final = (1, 0, 2)  # X (N, T, F), initial_h and initial_c (N, D, H), Y_h and Y_c (N, D, H)
_INPUTS: Final[dict[int, tuple[int, ...]]] = {0: _SWAP, 5: _SWAP, 6: _SWAP}
_OUTPUTS: Final[dict[int, tuple[int, ...]]] = {0: (2, 0, 1, 3), 1: _SWAP, 2: _SWAP}  # Y (T, D, N, H) to (N, T, D, H)


def time_first(graph: GraphProto) -> None:
    """Rewrites all such nodes at any depth, in place."""
    _rewrite(graph, all_names(graph))


def _rewrite(graph: GraphProto, taken: set[str]) -> None:
    for index, node in reversed(list(enumerate(graph.node))):
        if is_recurrent(node) and attribute(node, "layout", 0) == 1:
            before, after = _turned(node, taken)
            for each in reversed(after):
                graph.node.insert(index + 1, each)
            for each in before:
                graph.node.insert(index, each)
        for sub in subgraphs(node):
            _rewrite(sub, taken)


def _turned(node: NodeProto, taken: set[str]) -> tuple[list[NodeProto], list[NodeProto]]:
    """Changes `node`; the transposes to put before and behind it."""
    kept = [each for each in node.attribute if each.name != "layout"]
    del node.attribute[:]
    node.attribute.extend(kept)
    before, after = [], []
    for index, order in _INPUTS.items():
        if index < len(node.input) and node.input[index]:
            name = unused(f"{node.input[index]}/time_first", taken)
            before.append(helper.make_node("Transpose", [node.input[index]], [name], perm=order))
            node.input[index] = name
    for index, order in _OUTPUTS.items():
        if index < len(node.output) and node.output[index]:
            name = unused(f"{node.output[index]}/time_first", taken)
            after.append(helper.make_node("Transpose", [name], [node.output[index]], perm=order))
            node.output[index] = name
    return before, after
