"""Files as Keras 2 wrote them, from models of Keras 3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.parity.case import Array


def save(model: Any, path: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Path:
    """The model as an .h5 of Keras 2; `change` is given each layer's part of the configuration."""
    model.save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            change(layer)
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = b"2.3.1"
    return path


def to_cudnn(layer: dict[str, Any]) -> None:
    """The configuration of an LSTM or GRU as a CuDNNLSTM or CuDNNGRU has it."""
    if layer["class_name"] not in ("LSTM", "GRU"):
        return
    layer["class_name"] = f"CuDNN{layer['class_name']}"
    for key in ("activation", "recurrent_activation", "reset_after", "use_bias", "dropout", "recurrent_dropout"):
        layer["config"].pop(key, None)
    for key in ("implementation", "unroll", "seed", "zero_output_for_mask", "use_cudnn"):
        layer["config"].pop(key, None)


def weights_to_cudnn(path: Path) -> None:
    """The weights of an .h5 in cuDNN's layout: gates transposed, and two biases one behind the other."""

    def convert(_: str, group: Any) -> None:
        names = {name.partition(":")[0]: name for name in group} if isinstance(group, h5py.Group) else {}
        if "recurrent_kernel" not in names:
            return
        kernel, recurrent, bias = (group[names[name]][()] for name in ("kernel", "recurrent_kernel", "bias"))
        found.append((group, names["kernel"], _gates(kernel, recurrent, _columns_first)))
        found.append((group, names["recurrent_kernel"], _gates(recurrent, recurrent, lambda gate: gate.T)))
        # Any split does where the sum counts; a GRU's two are kept apart.
        both = bias.reshape(-1) if bias.ndim == 2 else np.concatenate([0.25 * bias, 0.75 * bias])
        found.append((group, names["bias"], both))

    found: list[tuple[Any, str, Array]] = []
    with h5py.File(path, "r+") as file:
        file.visititems(convert)
        for group, name, array in found:
            del group[name]
            group[name] = array


def _gates(weights: Array, recurrent: Array, change: Callable[[Array], Array]) -> Array:
    return np.hstack([change(gate) for gate in np.hsplit(weights, recurrent.shape[1] // len(recurrent))])


def _columns_first(gate: Array) -> Array:
    """cuDNN reads the numbers of a (inputs, units) kernel as (units, inputs)."""
    return gate.T.reshape(gate.shape, order="C")
