"""The states of Keras' recurrent layers, by the names that people know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from recurra.models.export.backend import Layer, Tensor, keras
from recurra.models.signature import Array


@dataclass(frozen=True)
class State:
    """One state of a layer.

    Attributes:
        name: "lstm_1/h".
        layer: as the model's summary calls it, "lstm_1".
        fresh: of one session.
        shown: it is the layer's output too.

    """

    name: str
    layer: str
    fresh: Array = field(compare=False)
    shown: bool = False


def is_cell(layer: Layer) -> bool:
    """Whether it computes one timestep from an input and states."""
    return hasattr(layer, "state_size") and not isinstance(layer, keras.layers.RNN)


def kinds(cell: Layer, count: int) -> list[str]:
    """What a cell's `count` states are called."""
    if isinstance(cell, keras.layers.StackedRNNCells):
        counts = [len(keras.tree.flatten(inner.state_size)) for inner in cell.cells]
        names = [each.name for each in cell.cells]
        owners = [f"{name}_{index}" if names.count(name) > 1 else name for index, name in enumerate(names)]
        parts = zip(owners, cell.cells, counts, strict=True)
        return [f"{owner}/{kind}" for owner, inner, number in parts for kind in kinds(inner, number)]
    if hasattr(cell, "unit_forget_bias"):  # LSTM's and ConvLSTM's
        return ["h", "c"]
    if isinstance(cell, (keras.layers.SimpleRNNCell, keras.layers.GRUCell)):
        return ["h"]
    return [f"state_{number + 1}" for number in range(count)]


def _shown(cell: Layer, count: int) -> int | None:
    """Which of a cell's states is its output."""
    if isinstance(cell, keras.layers.StackedRNNCells):
        last = len(keras.tree.flatten(cell.cells[-1].state_size))
        index = _shown(cell.cells[-1], last)
        return None if index is None else count - last + index
    own = type(cell).__module__.partition(".")[0] == "keras"
    return 0 if own and kinds(cell, count)[0] == "h" else None


def named(owner: str, place: str, cell: Layer, fresh: Sequence[Tensor], known: Iterable[State]) -> list[State]:
    """The states of one call of a layer; a layer that is called twice has them twice.

    Args:
        owner: the layer that people see.
        place: what its states' names start with: of a Bidirectional, "bidirectional/forward_lstm".
        fresh: the states of one row.
        known: what earlier calls have.

    """
    taken, call, prefix = {state.name for state in known}, 1, place
    names, shown = kinds(cell, len(fresh)), _shown(cell, len(fresh))
    while f"{prefix}/{names[0]}" in taken:
        call += 1
        prefix = f"{place}/call_{call}"
    return [
        State(f"{prefix}/{name}", owner, np.asarray(value)[0], index == shown)
        for index, (name, value) in enumerate(zip(names, fresh, strict=True))
    ]
