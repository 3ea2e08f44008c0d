"""The layers that own recurrent nodes, as the file names them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from onnx import NodeProto

# What exporters put around the layer's own name.
_WRAPPING = re.compile(
    r"(LSTM|GRU|RNN|Rnn|Lstm|Gru|SimpleRNN)?(_{0,2}\d+)?"
    r"|(Stateful)?PartitionedCall(_\d+)?|while(_loop)?(_{0,2}\d+)?|(Loop|Scan|loop|scan)(_{0,2}\d+)?|(sequential|functional|model)(_\d+)?|forward|node_.*"
)


def names(nodes: Sequence[NodeProto]) -> list[str]:
    """One name for each node, unique and stable: the file's name of its layer, else "lstm_1", "gru_2" by counting.

    Nodes of one layer (a stack that an exporter took apart) are numbered: lstm, lstm_1.
    """
    found, counts = [], Counter[str]()
    for node in nodes:
        parts = [part for part in re.split(r"[/.:]+", node.name) if part and not _WRAPPING.fullmatch(part)]
        if parts:
            found.append(re.sub(r"[^A-Za-z0-9._-]", "_", re.sub(r"__\d+$", "", parts[-1])))
        else:
            counts[node.op_type] += 1
            found.append(f"{node.op_type.lower()}_{counts[node.op_type]}")
    unique: list[str] = []
    for name in found:
        number, candidate = 0, name
        while candidate in unique or (number and candidate in found):
            number += 1
            candidate = f"{name}_{number}"
        unique.append(candidate)
    return unique
