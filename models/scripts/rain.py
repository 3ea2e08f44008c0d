"""Radar frames that the model `nowcaster` learns from: made-up cells of rain that drift, grow and decay."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

SIZE: Final = 24
FRAMES: Final = 20
_CELLS: Final = 5

Array = npt.NDArray[np.float32]


def learned() -> Array:
    """The sequences that the model is trained on, (512, 20, 24, 24, 1), mm/h."""
    return sequences(512, seed=7)


def held_out() -> Array:
    """Sequences that it has never seen, (64, 20, 24, 24, 1), mm/h."""
    return sequences(64, seed=2026)


def sequences(count: int, seed: int) -> Array:
    """Sequences of frames, (count, 20, 24, 24, 1), mm/h. Each has a wind of its own, 0.5 to 1.5 pixels a frame."""
    rng = np.random.default_rng(seed)

    def draw(low: float, high: float) -> npt.NDArray[np.float64]:
        return rng.uniform(low, high, (count, _CELLS))

    time = np.arange(FRAMES)
    speed, direction = rng.uniform(0.5, 1.5, (count, 1)), rng.uniform(0, 2 * np.pi, (count, 1))
    # A cell lives from `born` for `life` frames, is strongest half way, and is then somewhere on the grid.
    life, born = draw(12, 40), draw(-20, 14)
    age = (time - born[:, :, None]) / life[:, :, None]
    strength = draw(6, 30)[:, :, None] * np.sin(np.pi * age.clip(0, 1)) ** 2
    half_way = (time - (born + life / 2)[:, :, None]) * speed[:, :, None]
    row = draw(0, SIZE)[:, :, None] + half_way * np.sin(direction + draw(-0.1, 0.1))[:, :, None]
    column = draw(0, SIZE)[:, :, None] + half_way * np.cos(direction + draw(-0.1, 0.1))[:, :, None]
    width = draw(1.5, 3.0)[:, :, None, None]
    pixels = np.arange(SIZE)
    down = np.exp(-(((pixels - row[..., None]) / width) ** 2) / 2)
    across = np.exp(-(((pixels - column[..., None]) / width) ** 2) / 2)
    frames = np.einsum("nct,nctr,nctk->ntrk", strength, down, across)
    return frames[..., None].astype(np.float32)
