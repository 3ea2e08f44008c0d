"""A Keras model written as a folder that the server serves: `recurra export keras`."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from onnx import ModelProto

from recurra.models import causal
from recurra.models.carried import is_loop
from recurra.models.config import StateConfig
from recurra.models.export import folder as folders
from recurra.models.export.backend import Layer, keras
from recurra.models.export.keras_file import load
from recurra.models.export.one_step import given_states, of_cell
from recurra.models.export.started import from_fresh
from recurra.models.export.states import State, is_cell
from recurra.models.export.traced import Wired, input_name, trace
from recurra.models.graph import is_recurrent, walk
from recurra.models.refusal import ModelRefused
from recurra.models.repository import Model

T = TypeVar("T")


def export(
    model: Layer | Path | str,
    folder: Path,
    *,
    version: int = 1,
    input_shape: Sequence[int | None] = (),
    start: Layer | Path | str | None = None,
    source: str = "",
) -> Model:
    """Writes `folder` and answers the model as the server will load it.

    Args:
        model: a keras.Model, a layer, a cell (one timestep a call), or the path of a .keras or .h5 file.
        folder: its name is the model's.
        input_shape: without the batch, of a layer, a cell, or a model that does not tell it: (None, 3).
        start: an encoder, whose outputs are, in order, the model's states: what a session starts from.
        source: what it was exported from, for the README.

    Raises:
        ModelRefused: the file is none of Keras, the model cannot be a graph, or the server would refuse it.

    """
    if keras.backend.backend() != "tensorflow":
        raise ModelRefused(
            f"Keras runs on {keras.backend.backend()} here, and only TensorFlow makes ONNX of it: save the model as "
            ".keras, and export the file with `recurra export keras`, or set KERAS_BACKEND=tensorflow first"
        )
    if isinstance(model, str | Path):
        source = source or f"the Keras file {Path(model).name}"
    model = _with_inputs(_loaded(model), input_shape)
    encoder = None if start is None else _encoder(_with_inputs(_loaded(start), ()))
    source = source or f"the Keras model {model.name}"
    return _either(
        model, lambda free: _written(model, folder, free_time=free, start=encoder, version=version, source=source)
    )


def from_command(arguments: argparse.Namespace) -> Model:
    """What `recurra export keras` does."""
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it, for what is imported later too
    for name in arguments.imports:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ModelRefused(f"--import {name}: {error}; is it in this folder, or on PYTHONPATH?") from error
    return export(arguments.model, arguments.out, version=arguments.version, start=arguments.start)


def _loaded(model: Layer | Path | str) -> Layer:
    if isinstance(model, str | Path):
        model = load(Path(model))
    if not isinstance(model, keras.layers.Layer):
        raise ModelRefused(f"{type(model).__name__} is no model or layer of Keras 3; save it as .h5, and give its path")
    return model


def _with_inputs(model: Layer, input_shape: Sequence[int | None]) -> Layer:
    """A model whose inputs are known."""
    if isinstance(model, keras.Model) and getattr(model, "inputs", None):
        return model
    if not input_shape and model.built:
        input_shape = ((model.get_build_config() or {}).get("input_shape") or ())[1:]
    if not input_shape:
        raise ModelRefused(f"'{model.name}' does not tell the shape of its inputs: give input_shape, such as (None, 3)")
    if is_cell(model):
        return of_cell(model, input_shape)
    inputs = keras.Input(tuple(input_shape), name="input")
    return keras.Model(inputs, model(inputs), name=model.name)


def _either(model: Layer, made: Callable[[bool], T]) -> T:
    """What is made of the model with its time axis free, or, where it does not run so, as it is."""
    try:
        return made(True)
    except ModelRefused:
        if all(each.shape[1:2] in ((), (None,)) for each in model.inputs):
            raise
    return made(False)


def _encoder(model: Layer) -> ModelProto:
    """The graph of an encoder, whose layers start fresh at every call."""
    own = {input_name(tensor) for tensor in model.inputs}
    proto, wired = _either(model, lambda free: _graph(model, free_time=free))
    from_fresh(proto, [(each.input, each.output, each.state.fresh) for each in wired if each.input not in own])
    return proto


def _graph(model: Layer, *, free_time: bool) -> tuple[ModelProto, list[Wired]]:
    text = [each.name for each in model.inputs if each.dtype == "string"]
    if text:
        raise ModelRefused(
            f"input '{text[0]}' of '{model.name}' is text, which ONNX has no lookup for: leave TextVectorization or "
            "StringLookup out of the model, and let the client do it"
        )
    given = given_states(model)
    outputs = _output_names(model, {index: f"{state.name}/next" for index, (_, state) in given.items()})
    wired = [Wired(state, name, outputs[index]) for index, (name, state) in given.items()]
    try:
        proto, wired = trace(model, outputs, wired, free_time=free_time)
    except ModelRefused:
        raise
    except Exception as error:  # of Keras, TensorFlow or the model's own layers
        reason = " ".join(str(error).split())[:400]
        raise ModelRefused(f"'{model.name}' cannot be made a graph: {type(error).__name__}: {reason}") from error
    _name_paddings(proto, model)
    return proto, wired


def _name_paddings(proto: ModelProto, model: Layer) -> None:
    """Names what a causal convolution pads after its layer; TensorFlow numbers the layer's calls, `near_1`."""
    layers = {layer.name for layer in model._flatten_layers()}  # noqa: SLF001
    for node in (node for node in proto.graph.node if node.op_type == "Pad"):
        parts = [part if part in layers else re.sub(r"_\d+$", "", part) for part in node.name.split("/")]
        owners = [part for part in parts if part in layers - {model.name}]
        node.name = f"{owners[-1]}/Pad" if owners else node.name


def _written(
    model: Layer, folder: Path, *, free_time: bool, start: ModelProto | None, version: int, source: str
) -> Model:
    proto, wired = _graph(model, free_time=free_time)
    kept = any(is_recurrent(node) or is_loop(node) for node in walk(proto.graph)) or causal.find(proto)
    if not wired and not kept:
        raise ModelRefused(
            f"'{model.name}' has no recurrent layer, cell, loop or causal convolution that keeps a state; any "
            "server for ONNX serves it"
        )
    return folders.write(
        proto,
        folder,
        states=[_config(each) for each in wired],
        files={_file(each.state): each.state.fresh for each in wired if _number(each.state) is None},
        start=start,
        version=version,
        source=source,
    )


def _output_names(model: Layer, known: dict[int, str]) -> list[str]:
    """The keys that the model gives them under, or the names of their layers, made different where they are not."""
    struct = getattr(model, "_outputs_struct", None)
    keys = {id(tensor): key for key, tensor in struct.items()} if isinstance(struct, dict) else {}
    taken = {input_name(tensor) for tensor in model.inputs}
    found = []
    for index, tensor in enumerate(model.outputs):
        stem = known.get(index) or keys.get(id(tensor)) or tensor._keras_history.operation.name  # noqa: SLF001
        name, number = stem, 0
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        found.append(name)
    return found


def _config(wired: Wired) -> StateConfig:
    state, number = wired.state, _number(wired.state)
    fresh = _file(state) if number is None else number
    return StateConfig(state.name, wired.input, wired.output, state.layer, 0, fresh)


def _number(state: State) -> float | None:
    """What fills the fresh state, if it is one number."""
    first = float(state.fresh.reshape(-1)[0])
    return first if (state.fresh == first).all() else None


def _file(state: State) -> str:
    return f"{re.sub('[^A-Za-z0-9._-]', '_', state.name)}.npy"
