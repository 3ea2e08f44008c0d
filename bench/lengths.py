"""Chunks of several lengths: padded into one run, against one run for each length.

    python -m bench.lengths

Chunks of so many sessions, as they would come together. One thread, one run of this command; medians of interleaved
repeats, CPU microseconds a timestep that counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from bench import models
from recurra.models import Model, Program
from recurra.models.repository import load_file

REPEATS = 15
SPANS = ((2, 2), (3, 4), (5, 8), (9, 16), (17, 32))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        large, small = models.lstm(), models.lstm(layers=1, hidden=32)
        repository = models.repository(Path(folder), **{"LSTM 2x256": large, "LSTM 1x32": small})
        for place in sorted(repository.iterdir()):
            model = load_file(place / "1/model.onnx", "lstm", "1", place, provider="cpu")
            for sessions in (4, 16, 64):
                print(f"\n{place.name}, {sessions} sessions\n{'timesteps':>10}  by length    padded  ratio")
                for low, high in SPANS:
                    apart, together = _measured(model, sessions, low, high)
                    print(f"{low:>4} to {high:>2}  {apart:10.1f}  {together:8.1f}  {together / apart:5.2f}")


def _measured(model: Model, sessions: int, low: int, high: int) -> tuple[float, float]:
    rng = np.random.default_rng(high)
    lengths = rng.integers(low, high, sessions, endpoint=True)
    x = rng.normal(size=(sessions, high, 64)).astype(np.float32)
    states = [np.zeros((1, sessions, *state.shape[1:]), np.float32) for state in model.signature.states]
    groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
    assert model.ragged is not None
    padded: Program = model.ragged

    def by_length() -> None:
        for rows in groups:
            model.program.run([x[rows, : lengths[rows[0]]]], [state.take(rows, 1) for state in states])

    def together() -> None:
        padded.run([x], states, lengths)

    timesteps, figures = lengths.sum(), ([], [])
    for _ in range(REPEATS):
        for figure, run in zip(figures, (by_length, together), strict=True):
            figure.append(_microseconds(run) / timesteps)
    return median(figures[0]), median(figures[1])


def _microseconds(run: Callable[[], None]) -> float:
    began = time.process_time()
    run()
    return (time.process_time() - began) * 1e6


if __name__ == "__main__":
    main()
