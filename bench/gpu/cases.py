"""The models that are measured on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import onnx

from bench import models


class Case(NamedTuple):
    """A model: a timestep's input without a batch axis, how many sessions at once at most, and PyTorch's kind of it.

    `peer`: (features, layers, hidden) of an LSTM; None for a ConvLSTM2D of `side` and `filters`.
    """

    title: str
    shape: tuple[int, ...]
    build: Callable[[], onnx.ModelProto]
    max_batch: int
    peer: tuple[int, int, int] | None = None
    side: int = 0
    filters: int = 0


def _lstm(layers: int, hidden: int, max_batch: int) -> Case:
    def build() -> onnx.ModelProto:
        return models.lstm(layers=layers, hidden=hidden)

    return Case(f"LSTM {layers}x{hidden}", (64,), build, max_batch, (64, layers, hidden))


def _conv_lstm(side: int, filters: int, max_batch: int) -> Case:
    def build() -> onnx.ModelProto:
        return models.conv_lstm(side=side, filters=filters)

    title = f"ConvLSTM2D {side}x{side}x{filters}"
    return Case(title, (1, side, side), build, max_batch, side=side, filters=filters)


WHOLE = {"lstm": _lstm(2, 256, 1024), "deep": _lstm(4, 1024, 1024), "conv": _conv_lstm(64, 64, 256)}
QUICK = {"lstm": _lstm(2, 64, 64), "conv": _conv_lstm(16, 8, 16)}
