"""A model file, read with suspicion: it may come from a stranger."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, external_data_helper

from recurra.models.graph import GATES, attribute, is_recurrent, label, subgraphs, walk
from recurra.models.order import sort
from recurra.models.refusal import ModelRefused

DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
MAX_BYTES: Final = 2**31 - 1  # of a protobuf message

_ACTIVATIONS: Final = frozenset(
    [
        "relu",
        "tanh",
        "sigmoid",
        "affine",
        "leakyrelu",
        "thresholdedrelu",
        "scaledtanh",
        "hardsigmoid",
        "elu",
        "softsign",
        "softplus",
    ]
)
_DIRECTIONS: Final = {"forward": 1, "reverse": 1, "bidirectional": 2}


def read(path: Path, sha256: str | None = None) -> ModelProto:
    """The model in `path`, its external data included, its nodes in order.

    Raises ModelRefused for what cannot be read, has another digest than `sha256`, reaches outside of its folder, uses
    operators that are not on the list, or has a node that would crash the runtime.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelRefused(f"{path.name} cannot be read: {error.strerror or error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise ModelRefused(f"{path.name} has sha256 {digest}, but model.toml wants {sha256}; correct one of them")
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise ModelRefused(f"{path.name} is no ONNX model: {error}") from error
    if not model.graph.node:
        raise ModelRefused(f"{path.name} is no ONNX model, or an empty one: it has no nodes")
    check(model)
    sort(model.graph)
    _load_external(model, path.parent)
    if model.ByteSize() > MAX_BYTES:
        raise ModelRefused(f"{path.name} is larger than 2 GiB with its external data, which is not served yet")
    return model


def check(model: ModelProto) -> None:
    """Raises ModelRefused for operators and settings that are not let through to the runtime."""
    if model.functions:
        raise ModelRefused("the model has functions of its own; inline them (onnx.inliner.inline_local_functions)")
    for node in walk(model.graph):
        if node.domain not in DOMAINS:
            raise ModelRefused(
                f"{label(node)} is of domain '{node.domain}'; only the domains "
                f"{', '.join(repr(domain) for domain in DOMAINS)} are served: export without custom operators"
            )
        if is_recurrent(node):
            _check_recurrent(node)


def _check_recurrent(node: NodeProto) -> None:
    """A wrong number of activations can abort the whole process in the CUDA provider."""
    direction = attribute(node, "direction", "forward")
    if direction not in _DIRECTIONS:
        raise ModelRefused(f"{label(node)} has direction '{direction}'; use one of {', '.join(_DIRECTIONS)}")
    needed = GATES[node.op_type] * _DIRECTIONS[direction]
    names = [name.decode() for name in attribute(node, "activations", [])]
    if names and len(names) != needed:
        raise ModelRefused(f"{label(node)} has {len(names)} activations, but needs {needed}; export it again")
    unknown = [name for name in names if name.lower() not in _ACTIVATIONS]
    if unknown:
        raise ModelRefused(f"{label(node)} has the activation '{unknown[0]}', which ONNX does not know")
    for name in ("activation_alpha", "activation_beta"):
        if len(attribute(node, name, [])) > needed:
            raise ModelRefused(f"{label(node)} has more values in {name} than its {needed} activations")
    if len(node.input) < 3:  # noqa: PLR2004
        raise ModelRefused(f"{label(node)} lacks weights; export it again")


def _load_external(model: ModelProto, folder: Path) -> None:
    external = [tensor for tensor in _tensors(model.graph) if external_data_helper.uses_external_data(tensor)]
    root = folder.resolve()
    for tensor in external:
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if not location or Path(location).is_absolute() or not (folder / location).resolve().is_relative_to(root):
            raise ModelRefused(
                f"tensor '{tensor.name}' lies in '{location}', outside of the model's folder; put the file next to "
                "model.onnx and name it by a relative path"
            )
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(root))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise ModelRefused(f"tensor '{tensor.name}' cannot be read from '{location}': {error}") from error
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """All stored tensors at any depth."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for each in node.attribute:
            if each.HasField("t"):
                yield each.t
            yield from each.tensors
        for sub in subgraphs(node):
            yield from _tensors(sub)
