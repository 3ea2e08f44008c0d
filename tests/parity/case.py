"""One case: how its framework builds it, and the oracle that comes of it. Needs no framework itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CHUNKS: Final = (4, 1, 3, 2, 3)  # timesteps of each call
RESET_AFTER: Final = 3  # so many chunks one layer is reset
TIMESTEPS: Final = sum(CHUNKS)
ROWS: Final = 2  # sessions
ORACLE: Final = "oracle.npz"  # beside model.toml in a case's model folder


@dataclass(frozen=True)
class Oracle:
    """What the framework gave.

    Attributes:
        inputs: by the exported model's input name, (ROWS, TIMESTEPS, ...) or (ROWS, ...) where it has no time axis.
        outputs: by the exported model's output name: (ROWS, TIMESTEPS, ...), or (ROWS, len(CHUNKS), ...) of one value a
            chunk.
        reset: the layer, as Recurra names it, that was reset after RESET_AFTER chunks; empty for all of them.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    reset: str = ""

    def save(self, folder: Path) -> None:
        arrays = {f"input {name}": array for name, array in self.inputs.items()}
        arrays |= {f"output {name}": array for name, array in self.outputs.items()}
        np.savez_compressed(folder / ORACLE, reset=np.array(self.reset), **arrays)

    @classmethod
    def load(cls, folder: Path) -> Oracle:
        with np.load(folder / ORACLE) as arrays:
            parts = {
                kind: {name.removeprefix(f"{kind} "): arrays[name] for name in arrays if name.startswith(f"{kind} ")}
                for kind in ("input", "output")
            }
            return cls(parts["input"], parts["output"], str(arrays["reset"]))


@dataclass(frozen=True)
class Case:
    """A layer, or a small model, with random weights.

    Attributes:
        name: of the model folder, "keras_lstm".
        layer: as the table of docs/models.md calls it, "LSTM, last output only".
        exporter: "keras" or "torch".
        build: exports the model to a folder with recurra's exporter, and runs it in its framework, statefully.
        differs: why it may differ from its framework by design; empty where it may not.
        tolerance: largest difference, of values above 1 relative to them.
    """

    name: str
    layer: str
    exporter: str
    build: Callable[[Path], Oracle] = field(repr=False)
    differs: str = ""
    tolerance: float = 1e-5
