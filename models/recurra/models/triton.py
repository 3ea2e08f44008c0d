"""A model folder of Triton's: what its config.pbtxt says of sequences and states, as a model.toml."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray

from recurra.inference import service_pb2
from recurra.models.refusal import ModelRefused

Array = NDArray[Any]
Batching = service_pb2.ModelSequenceBatching
Control = Batching.Control

CONFIG: Final = "config.pbtxt"
_BACKENDS: Final = ("", "onnxruntime", "onnxruntime_onnx")
_READ: Final = {  # what is converted, or means nothing where one server runs the model
    *("name", "platform", "backend", "default_model_filename", "max_batch_size", "input", "output"),
    *("version_policy", "sequence_batching", "model_transaction_policy"),
}
_DTYPES: Final = {
    "TYPE_BOOL": "?",
    "TYPE_FP16": "<f2",
    "TYPE_FP32": "<f4",
    "TYPE_FP64": "<f8",
    **{f"TYPE_INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"TYPE_UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
}
_CONTROLS: Final = {
    Control.CONTROL_SEQUENCE_START: "start",
    Control.CONTROL_SEQUENCE_END: "end",
    Control.CONTROL_SEQUENCE_CORRID: "corrid",
}


@dataclass
class Converted:
    """What goes into the model's folder.

    Attributes:
        toml: the text of model.toml.
        files: fresh states by the name of their .npy files.
        notes: what a person should know.
    """

    toml: str = ""
    files: dict[str, Array] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def convert(folder: Path, versions: list[str]) -> Converted:
    """The config.pbtxt in `folder`. Raises ModelRefused for what no model.toml can say.

    `versions`: those that the folder holds, by number.
    """
    config = _parsed(folder / CONFIG)
    _servable(config)
    found = Converted()
    lines = [*_head(config, found), *_controls(config), *_states(config, folder, found)]
    found.toml = "\n".join(lines) + "\n"
    found.notes += _left_out(config, versions)
    return found


def _parsed(path: Path) -> service_pb2.ModelConfig:
    try:
        text = path.read_text("utf-8")
        return text_format.Parse(text, service_pb2.ModelConfig(), allow_unknown_field=True)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ModelRefused(f"{path.name} cannot be read: {error}") from error


def _servable(config: service_pb2.ModelConfig) -> None:
    if config.HasField("ensemble_scheduling"):
        raise ModelRefused("an ensemble is no model: serve its steps, and call one after the other")
    for name in (config.backend, config.platform):
        if name not in _BACKENDS:
            raise ModelRefused(f"'{name}' models are not served here: export the model to ONNX")
    if config.default_model_filename not in ("", "model.onnx"):
        raise ModelRefused(f"the file is called '{config.default_model_filename}': call it model.onnx")
    if config.model_transaction_policy.decoupled or config.sequence_batching.iterative_sequence:
        raise ModelRefused("a model that answers more or less than once a request is not served here")


def _head(config: service_pb2.ModelConfig, found: Converted) -> Iterator[str]:
    yield f"# From {CONFIG}, by `recurra import triton`"
    idle = config.sequence_batching.max_sequence_idle_microseconds
    if idle:
        yield f"session_ttl = {-(-idle // 1_000_000)}"
    else:
        found.notes.append("an idle sequence is kept for a day, the default; Triton's is a second")
    if config.max_batch_size > 0:
        yield f"max_batch = {config.max_batch_size}"
    yield "# retry_by_id = true  # if each request has an id of its own: one that is sent again is one step"


def _controls(config: service_pb2.ModelConfig) -> Iterator[str]:
    for each in config.sequence_batching.control_input:
        for control in each.control:
            yield from ("", f"[inputs.{json.dumps(each.name)}]")
            values = [*control.int32_false_true, *control.fp32_false_true, *map(int, control.bool_false_true)]
            if control.kind == Control.CONTROL_SEQUENCE_CORRID:
                if control.data_type == service_pb2.TYPE_STRING:
                    raise ModelRefused(f"control input '{each.name}' is a text: export the model with a number there")
            elif len(values) != 2:  # noqa: PLR2004
                raise ModelRefused(f"control input '{each.name}' has {len(values)} values for false and true, not two")
            if control.kind == Control.CONTROL_SEQUENCE_READY:
                yield f"constant = {values[1]:g}"
                continue
            yield f"control = {json.dumps(_CONTROLS[control.kind])}"
            if values:
                yield f"values = [{values[0]:g}, {values[1]:g}]"


def _states(config: service_pb2.ModelConfig, folder: Path, found: Converted) -> Iterator[str]:
    for state in config.sequence_batching.state:
        yield from ("", "[[states]]", f"name = {json.dumps(state.input_name)}")
        yield from (f"input = {json.dumps(state.input_name)}", f"output = {json.dumps(state.output_name)}")
        if config.max_batch_size > 0:
            yield "batch_axis = 0"
        for initial in state.initial_state[:1]:
            if initial.WhichOneof("state_data") == "data_file":
                file = f"{state.input_name.replace('/', '_')}.npy"
                found.files[file] = _data(folder / "initial_state" / initial.data_file, initial)
                yield f"fresh = {json.dumps(file)}"


def _data(path: Path, initial: Batching.InitialState) -> Array:
    """A file of bytes, as Triton has them: no header, row by row."""
    name = service_pb2.DataType.Name(initial.data_type)
    if name not in _DTYPES:
        raise ModelRefused(f"initial_state/{path.name}: {name} is no type of a state")
    try:
        return np.frombuffer(path.read_bytes(), _DTYPES[name]).reshape(initial.dims)
    except (OSError, ValueError) as error:
        raise ModelRefused(
            f"initial_state/{path.name} does not hold {name} of {list(initial.dims)}: {error}"
        ) from error


def _left_out(config: service_pb2.ModelConfig, versions: list[str]) -> Iterator[str]:
    policy = config.version_policy
    wanted = [str(version) for version in policy.specific.versions]
    if wanted and versions and versions[-1] not in wanted:
        yield f"version {versions[-1]}, the highest, is served, not {', '.join(wanted)}: take its folder away"
    elif policy.WhichOneof("policy_choice") == "all" or len(wanted) > 1 or policy.latest.num_versions > 1:
        yield "the highest version alone is served"
    listed = {tensor.name for tensor in config.output}
    shown = [state.output_name for state in config.sequence_batching.state if state.output_name in listed]
    if shown:
        yield f"{', '.join(shown)}: no output any more; recurra.v1 gives states with return_states"
    for tensor in config.input:
        if tensor.HasField("reshape") or tensor.optional:
            yield f"input '{tensor.name}': its reshape or optional is left out; clients send what the graph takes"
    others = [each.name for each, _ in config.ListFields() if each.name not in _READ]
    if others:
        yield f"left out, as the server decides that: {', '.join(sorted(others))}"
