"""A time loop that an exporter wrote out step by step: its state is lost between the steps."""

from __future__ import annotations

from collections import defaultdict

from onnx import GraphProto, NodeProto

from recurra.models.graph import ancestors, constants, label

_PRODUCTS = ("MatMul", "Gemm", "Conv")


def unrolled(graph: GraphProto) -> str:
    """What tells it, for people: a weight that is used again on what came of it. Empty if nothing does."""
    fixed = constants(graph)
    users = defaultdict[str, list[NodeProto]](list)
    for node in graph.node:
        if node.op_type in _PRODUCTS:
            for name in {name for name in node.input if name in fixed}:
                users[name].append(node)
    for name, nodes in users.items():
        if len(nodes) < 2:  # noqa: PLR2004
            continue
        _, names = ancestors([graph], nodes[-1].input, through_shapes=False)
        before = [node for node in nodes[:-1] if node.output[0] in names]
        if before:
            return (
                f"{label(nodes[-1])} uses the weight '{name}' on what {label(before[0])} made of it: this looks like a "
                "loop over time that was unrolled for a fixed number of timesteps; export it with unroll=False, or in "
                "PyTorch with nn.RNN, nn.GRU or nn.LSTM, or a loop under torch.jit.script"
            )
    return ""
