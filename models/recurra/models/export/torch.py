"""PyTorch modules as model folders.

Through the exporter that PyTorch calls legacy: it alone leaves batch and time free, and keeps an RNN, GRU or LSTM one
node.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from onnx import GraphProto, ModelProto, helper
from torch import nn

from recurra.models import causal, pairs
from recurra.models.carried import body_of, is_loop
from recurra.models.config import StateConfig
from recurra.models.export import example, folder
from recurra.models.export.cells import cells_known
from recurra.models.export.forward import NEXT, Forward, flat
from recurra.models.export.projection import unproject
from recurra.models.graph import is_recurrent, walk
from recurra.models.provider import ERRORS
from recurra.models.refusal import ModelRefused
from recurra.models.repository import Model
from recurra.models.selftest import compare
from recurra.models.session import Session
from recurra.models.signature import Array
from recurra.models.unrolled import unrolled

_OPSET: Final = 17

# Of that exporter's age, of its own use of scripts, of states that the lift sets free, and of the module run as it is.
_KNOWN_WARNINGS: Final = (
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed",
    r"`torch\.jit\.trace",
    "no signature found for <torch.ScriptMethod",
    "Exporting a model to ONNX with a batch_size other than 1",
    "LSTM with projections is not supported with oneDNN",
    "Constant folding - Only steps=1 can be constant folded",
)
_FAILURES: Final[tuple[type[Exception], ...]] = (RuntimeError, TypeError, ValueError, AttributeError, IndexError)


def export(
    module: nn.Module,
    out: Path,
    *,
    inputs: Mapping[str, str] | None = None,
    states: Mapping[str, str] | None = None,
    start: nn.Module | None = None,
    start_inputs: Mapping[str, str] | None = None,
    version: int = 1,
    source: str = "",
) -> Model:
    """Writes `module` as a model folder; the module itself stays as it is.

    Args:
        out: the folder; its name is the model's.
        inputs: forward's arguments, {"x": "float32[batch,time,8]"}, a word for each size that may be any; left out,
            the module's attribute `example_inputs`.
        states: those arguments that are states; forward gives their new values last, in this order. Left out, the
            attribute `example_states`, or none: states that forward does not take are found in the graph.
        start: an encoder, whose outputs are, in order, the model's states: what a session starts from.
        start_inputs: its arguments, as `inputs`.
        version: of the model.
        source: what the README says it was exported from.

    Raises:
        ModelRefused: forward does not fit, PyTorch cannot export it, or the server would not serve it.

    """
    forward = Forward(module, _told(module, inputs, "example_inputs"), _told(module, states, "example_states"))
    model = _converted(module, forward)
    _give_output(model.graph, forward)
    _name_layers(model.graph)
    found = {pair.input for pair in pairs.find(model.graph)}
    told = [StateConfig(name, name, name + NEXT) for name in forward.states if name not in found]
    if not (
        found or told or causal.find(model) or any(is_recurrent(node) or is_loop(node) for node in walk(model.graph))
    ):
        raise ModelRefused(
            "forward keeps no state; where one of its arguments is a state that it gives back, tell it by "
            f'--state "h={example.HOW}" in place of --input, or as the attribute example_states'
        )
    source = source or f"the PyTorch module {type(module).__name__}"
    encoder = None
    if start is not None:
        encoder = _converted(start, Forward(start, _told(start, start_inputs, "example_inputs"), {}))
    return folder.write(model, out, states=told, start=encoder, version=version, source=source)


def from_command(arguments: argparse.Namespace) -> Model:
    """`recurra export torch MODULE:ATTR OUT`. Raises ModelRefused."""
    return export(
        _imported(arguments.model),
        arguments.out,
        inputs=example.told(arguments.input),
        states=example.told(arguments.state),
        start=_imported(arguments.start) if arguments.start else None,
        start_inputs=example.told(arguments.start_input),
        version=arguments.version,
        source=f"`{arguments.model}` (PyTorch)",
    )


def _imported(where: str) -> nn.Module:
    name, _, path = where.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it, for what is imported later too
    try:
        found: Any = importlib.import_module(name)
        for attribute in path.split("."):
            found = getattr(found, attribute)
        if not isinstance(found, nn.Module) and callable(found):
            found = found()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ModelRefused(f"'{where}' cannot be had: {error}; write it as package.module:attribute") from error
    if not isinstance(found, nn.Module):
        raise ModelRefused(f"'{where}' is no nn.Module, and no function without arguments that makes one")
    return found


def _told(module: nn.Module, given: Mapping[str, str] | None, attribute: str) -> Mapping[str, str]:
    """What the caller tells, or the module."""
    return given or getattr(module, attribute, None) or {}


def _converted(module: nn.Module, forward: Forward) -> ModelProto:
    """The module as a graph, compared with it. Raises ModelRefused."""
    other = forward.arguments(larger=1)
    with _quiet(), torch.no_grad(), cells_known(_OPSET):
        try:
            plain = copy.deepcopy(module).eval()
            model = _to_onnx(_exportable(plain, forward), forward)
            expected = _arrays(plain(*other))
        except _FAILURES as error:
            reason = next(iter(str(error).strip().splitlines()), "")
            raise ModelRefused(f"PyTorch cannot export it: {type(error).__name__}: {reason}") from error
    _check(model, dict(zip((each.name for each in forward.examples), _arrays(other), strict=True)), expected)
    return model


def _exportable(module: nn.Module, forward: Forward) -> nn.Module:
    """A copy that the exporter can take."""
    module = copy.deepcopy(module)
    for each in module.modules():
        if isinstance(each, nn.LSTM) and each.proj_size:
            unproject(each)
    scripted = any(isinstance(each, torch.jit.ScriptModule) for each in module.modules())
    if scripted and not isinstance(module, torch.jit.ScriptModule):  # the exporter's own trace loses it
        traced: nn.Module = torch.jit.trace(module, forward.arguments(), check_trace=False)
        return traced
    return module


def _to_onnx(module: nn.Module, forward: Forward) -> ModelProto:
    arguments, written = forward.arguments(), io.BytesIO()
    torch.onnx.export(
        module,
        arguments,
        written,
        input_names=[each.name for each in forward.examples],
        output_names=forward.outputs(list(flat(module(*arguments)))),
        dynamic_axes={each.name: each.free for each in forward.examples},
        opset_version=_OPSET,
        dynamo=False,
    )
    return onnx.load_model_from_string(written.getvalue())


def _arrays(value: object) -> list[Array]:
    return [each.cpu().numpy() for each in flat(value)]


def _check(model: ModelProto, fed: Mapping[str, Array], expected: list[Array]) -> None:
    """Raises ModelRefused unless the file gives what the module gives, at sizes that were not exported."""
    names = [value.name for value in model.graph.output]
    try:
        session = Session(model.SerializeToString(), "cpu")
        error, good = compare(session.run(names, {name: fed[name] for name in session.inputs}), expected)
        what = f"differs from the module by {error:.2g}"
    except ERRORS as failure:
        good, what = False, f"does not run: {' '.join(str(failure).split())[:300]}"
    if not good:
        frozen = (
            "a size was frozen while it was traced (PyTorch warns of some; nn.MultiheadAttention freezes the "
            "timesteps), or sequences are packed (leave the packing out), or it is random, or no float32"
        )
        raise ModelRefused(
            f"with other sizes than it was exported with, the file {what}; {unrolled(model.graph) or frozen}"
        )


def _give_output(graph: GraphProto, forward: Forward) -> None:
    """A cell gives its states and no more: the first is its output too."""
    if len(graph.output) == len(forward.states):
        first = graph.output[0]
        graph.node.append(helper.make_node("Identity", [first.name], ["y"]))
        graph.output.insert(0, first)
        graph.output[0].name = "y"


def _name_layers(graph: GraphProto) -> None:
    """Names recurrent nodes after the module that they are in: "/encoder/lstm/LSTM_1" is of the layer encoder_lstm.

    A Loop outside any module is named after the only one that it runs.
    """
    for node in walk(graph):
        if is_recurrent(node) or is_loop(node):
            *path, kind = node.name.strip("/").split("/")
            if is_loop(node) and not path:
                inside = {each.name.split("/")[1] for each in walk(body_of(node)) if each.name.count("/") > 1}
                path = list(inside) if len(inside) == 1 else []
            node.name = "/".join([*filter(None, ["_".join(path).replace(".", "_")]), kind])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that are known, and without fused attention."""
    with warnings.catch_warnings():
        for message in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        # What modules of PyTorch and `unproject` ask of sizes and values has one answer at every call.
        torch.jit.TracerWarning.ignore_lib_warnings()
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=unproject.__module__)
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # its fused attention has no ONNX
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
