"""Files of Keras 2 as Keras 3 must read them to give the same results."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from recurra.models.export.backend import keras as framework
from recurra.models.refusal import ModelRefused
from recurra.models.signature import Array

_CONFIG: Final = "config.json"
_CUDNN: Final = {"CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU"}
_LSTM_GATES: Final = 4
_HARD_SIGMOID: Final = "keras_2_hard_sigmoid"


def hard_sigmoid(x: Any) -> Any:
    """Keras 2's: Keras 3 has another slope."""
    return framework.ops.clip(0.2 * x + 0.5, 0.0, 1.0)


# What the new configurations name beside Keras' own.
OBJECTS: Final = {_HARD_SIGMOID: hard_sigmoid}


def h5(path: Path, scratch: Path) -> Path:
    """`path` itself, or where Keras 2 wrote it, a changed copy in `scratch`."""
    with h5py.File(path) as file:
        version, config = (file.attrs.get(key, "") for key in ("keras_version", "model_config"))
    if not _is_old(version) or not config:
        return path
    copy = Path(shutil.copy(path, scratch / "model.h5"))
    with h5py.File(copy, "r+") as file:
        file.attrs["model_config"] = json.dumps(_modern(json.loads(config)))
        groups: list[h5py.Group] = []
        file.visititems(lambda _, item: groups.append(item) if isinstance(item, h5py.Group) else None)
        for group in groups:
            _from_cudnn(group)
    return copy


def keras(path: Path, scratch: Path) -> Path:
    """`path` itself, or where Keras 2 wrote it, a changed copy in `scratch`."""
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
        version = json.loads(file.read("metadata.json")).get("keras_version", "") if "metadata.json" in names else "3"
        if not _is_old(version):
            return path
        copy = scratch / "model.keras"
        with zipfile.ZipFile(copy, "w") as changed:
            for name in names:
                content = file.read(name)
                if name == _CONFIG:
                    content = json.dumps(_modern(json.loads(content))).encode()
                changed.writestr(name, content)
    return copy


def _is_old(version: str | bytes) -> bool:
    text = version.decode() if isinstance(version, bytes) else version
    return text.partition(".")[0] in ("", "1", "2")


def _modern(config: Any) -> Any:
    """The configuration of a model, or a part of it, with what it leaves to Keras 2's defaults spelt out."""
    if isinstance(config, list):
        return [_modern(each) for each in config]
    if not isinstance(config, Mapping):
        return config
    found = {key: _modern(value) for key, value in config.items()}
    for key in {"activation", "recurrent_activation"} & found.keys():
        name = found[key]["config"] if isinstance(found[key], dict) else found[key]
        if name == "hard_sigmoid":
            found[key] = {"class_name": "function", "config": _HARD_SIGMOID, "registered_name": _HARD_SIGMOID}
    kind, inner = found.get("class_name"), found.get("config")
    if kind == "Sequential" and isinstance(inner, list):  # before 2.2.3
        inner = {"name": "sequential", "layers": inner}
    if isinstance(kind, str) and isinstance(inner, dict):
        found |= {"class_name": _CUDNN.get(kind, kind), "config": _modern_layer(kind, inner)}
    return found


def _modern_layer(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    if kind == "Sequential":
        config["layers"] = _with_input(config["layers"])
    if kind in ("GRU", "GRUCell"):
        config.setdefault("reset_after", False)
    if config.pop("time_major", False):
        raise ModelRefused(f"'{config.get('name')}' has time_major=True, which Keras 3 lacks; put the batch first")
    return config


def _with_input(layers: list[Any]) -> list[Any]:
    """A Sequential's layers, with an InputLayer where the first one tells the shape, which Keras 3 reads wrongly."""
    kind, config = layers[0]["class_name"], layers[0]["config"]
    if kind == "InputLayer" or "batch_input_shape" not in config:
        return layers
    dtype = "int32" if kind == "Embedding" else config.get("dtype", "float32")
    shape = {"batch_input_shape": config.pop("batch_input_shape"), "dtype": dtype, "name": "input"}
    return [{"class_name": "InputLayer", "config": shape}, *layers]


def _from_cudnn(group: h5py.Group) -> None:
    """Changes the weights of a CuDNNLSTM or CuDNNGRU layer in place; their two biases tell them from others."""
    names = {name.partition(":")[0]: name for name in group}
    if not {"kernel", "recurrent_kernel", "bias"} <= set(names):
        return
    kernel, recurrent, bias = (group[names[name]][()] for name in ("kernel", "recurrent_kernel", "bias"))
    if recurrent.ndim != 2 or bias.shape != (2 * recurrent.shape[1],):  # noqa: PLR2004
        return
    gates = recurrent.shape[1] // len(recurrent)
    _put(group, names["kernel"], np.hstack([_transposed(gate) for gate in np.hsplit(kernel, gates)]))
    _put(group, names["recurrent_kernel"], np.hstack([gate.T for gate in np.hsplit(recurrent, gates)]))
    halves = bias.reshape(2, -1)
    _put(group, names["bias"], halves.sum(axis=0) if gates == _LSTM_GATES else halves)


def _transposed(gate: Array) -> Array:
    """CuDNN keeps (inputs, units) as the rows of its transpose."""
    return gate.T.reshape(gate.shape, order="F")


def _put(group: h5py.Group, name: str, value: Array) -> None:
    del group[name]
    group[name] = value
