"""A model on CUDA with its states in a pool, as the tests run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from recurra.models import Model, Pool, PoolProgram, load
from recurra.models.graph import walk
from recurra.models.pool import FIRST
from recurra.models.pool_program import Result
from recurra.models.samples import Samples

ROWS = 4  # a bucket
PLACES = 4096  # so many that a copy of a pool is larger than any other


@dataclass
class Pooled:
    """Attributes: rows: how many sessions a run has."""

    model: Model
    rows: int
    pool: Pool
    program: PoolProgram

    def inputs(self, timesteps: int, rows: int = 0) -> list[np.ndarray[Any, Any]]:
        return Samples(self.model.signature).inputs(rows or self.rows, timesteps)

    def run(self, inputs: list[np.ndarray[Any, Any]]) -> Result:
        rows = len(inputs[0])
        places = [FIRST + np.arange(rows) + rows * turn for turn in range(3)]
        return self.program.run(inputs, places)

    @property
    def told(self) -> int:
        """Bytes that tell whether the new states of all rows are finite."""
        return sum(self.rows * dtype.itemsize for dtype in self.pool.buffers if dtype.kind == "f")

    @property
    def has_loop(self) -> bool:
        graph = onnx.load_model_from_string(self.model.program.session.model).graph
        return any(node.op_type == "Loop" for node in walk(graph))


def pooled(folder: Path) -> Pooled:
    model = load(folder, provider="cuda")
    rows = min(ROWS, model.max_batch)
    pool = Pool(model.signature, model.program.session, PLACES)
    return Pooled(model, rows, pool, PoolProgram(model.program, pool, rows))
