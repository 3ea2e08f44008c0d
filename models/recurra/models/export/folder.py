"""A model folder as an exporter leaves it: the graph, its model.toml, and a README with what it takes and gives."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from onnx import ModelProto

from recurra.models.config import StateConfig
from recurra.models.export.started import call_as_states
from recurra.models.refusal import ModelRefused
from recurra.models.repository import FILE, SETTINGS, START, Model, is_name, load
from recurra.models.signature import Array, StateSpec, TensorSpec

_README: Final = "README.md"


def write(
    model: ModelProto,
    folder: Path,
    *,
    states: Sequence[StateConfig] = (),
    files: Mapping[str, Array] = MappingProxyType({}),
    start: ModelProto | None = None,
    version: int = 1,
    source: str = "",
) -> Model:
    """Writes `folder` and answers the model as the server will load it. What cannot be served is not written.

    A model.toml or README that is there already, beside other versions, stays as it is.

    Args:
        folder: its name is the model's.
        states: pairs that the graph does not tell by itself.
        files: fresh states by the names of the .npy files that `states` give.
        start: the graph whose outputs, in their order, are the states that a session starts from.
        source: what it was exported from, for the README.

    Raises:
        ModelRefused: the folder has this version already, or the server would refuse the model.

    """
    folder = folder.resolve()
    check(folder, version)
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / folder.name
        (draft / str(version)).mkdir(parents=True)
        (draft / str(version) / FILE).write_bytes(model.SerializeToString())
        if (folder / SETTINGS).exists():
            for each in (folder / SETTINGS, *folder.glob("*.npy")):
                shutil.copy(each, draft)
        else:
            (draft / SETTINGS).write_text(_settings(states), "utf-8")
            for name, array in files.items():
                np.save(draft / name, array)
        loaded = load(draft, provider="cpu")
        if start is not None:
            call_as_states(start, [port.spec.name for port in loaded.program.layout.states])
            (draft / str(version) / START).write_bytes(start.SerializeToString())
            loaded = load(draft, provider="cpu")
        if not (folder / _README).exists():
            (draft / _README).write_text(_readme(loaded, source), "utf-8")
        shutil.copytree(draft, folder, dirs_exist_ok=True)
    return loaded


def check(folder: Path, version: int) -> None:
    """Raises ModelRefused if no such version can be written, before the long work of making it."""
    folder = folder.resolve()
    if not is_name(folder.name):
        raise ModelRefused(f"'{folder.name}' is no name for a model; use up to 64 letters, digits, . - _")
    if (folder / str(version)).exists():
        raise ModelRefused(f"{folder / str(version)} exists; give another folder, or another version")


def _settings(states: Sequence[StateConfig]) -> str:
    lines = ["# session_ttl = 86400  # seconds that a session is kept after its last operation"]
    lines.append("# max_batch = 256     # sessions in one run at most")
    for state in states:
        lines += ["", "[[states]]", *(f"{key} = {json.dumps(getattr(state, key))}" for key in ("name", "input"))]
        lines.append(f"output = {json.dumps(state.output)}")
        lines += [
            f"{key} = {json.dumps(getattr(state, key))}"
            for key in ("layer", "batch_axis")
            if getattr(state, key) is not None
        ]
        if state.fresh:
            lines.append(f"fresh = {json.dumps(state.fresh)}")
    return "\n".join(lines) + "\n"


def _readme(model: Model, source: str) -> str:
    signature, test = model.signature, model.self_test
    lines = [f"# {model.name}", ""]
    if source:
        lines += [f"Exported from {source}.", ""]
    lines += ["| tensor | | dtype | shape |", "|---|---|---|---|"]
    started = model.start.inputs if model.start else ()
    lines += [f"| `{spec.name}` | start input | {spec.dtype.name} | {_shape(spec)} |" for spec in started]
    lines += [f"| `{spec.name}` | input | {spec.dtype.name} | {_shape(spec)} |" for spec in signature.inputs]
    lines += [f"| `{spec.name}` | output | {spec.dtype.name} | {_shape(spec)} |" for spec in signature.outputs]
    lines += [
        f"| `{spec.name}` | state of {spec.layer} | {spec.dtype.name} | {_state_shape(spec)} |"
        for spec in signature.states
    ]
    notes = [f"- {note}" for note in test.notes]
    lines += ["", f"A session's state has {signature.state_bytes} bytes.", *([""] if notes else []), *notes, ""]
    lines += ["```python", f'session = client.session("{model.name}", "SESSION")']
    if started:
        lines.append(f"session.predict({_call(signature.inputs)}, start={_call(started)})  # begins with a source")
    lines += [f"session.predict({_call(signature.inputs)})", "```", ""]
    return "\n".join(lines)


def _call(specs: Sequence[TensorSpec]) -> str:
    """An argument for these tensors."""
    named = ", ".join(f'"{spec.name}": ...' for spec in specs)
    return "..." if len(specs) == 1 else f"{{{named}}}"


def _shape(spec: TensorSpec) -> str:
    sizes = ("any" if size is None else str(size) for size in spec.shape)
    return f"({', '.join(['time'] * spec.has_time_axis + [*sizes])})"


def _state_shape(spec: StateSpec) -> str:
    return f"({', '.join(map(str, spec.shape))})"
