"""The node that looks at later timesteps, for a refusal to name it where chunks differ from one long run."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import NodeProto, helper

from recurra.models.graph import label
from recurra.models.program import Program
from recurra.models.provider import ERRORS
from recurra.models.refusal import ModelRefused
from recurra.models.samples import Samples
from recurra.models.selftest import compare
from recurra.models.session import Session
from recurra.models.signature import Array

_FAILURES: Final[tuple[type[Exception], ...]] = (ModelRefused, *ERRORS)
_SHORT: Final = 4
_LONG: Final = 7


def culprit(content: bytes, program: Program) -> str:
    """The first node whose value at the first timesteps changes when later ones follow, as a message names it.

    Where that node only puts a summary of the whole chunk to use, such as a mean, the node that makes the summary.
    Empty where none is found.
    """
    if program.layout.stepwise or program.layout.chunk_sizes:
        return ""
    try:
        return _find(content, program)
    except _FAILURES:  # such as a value that cannot be given out
        return ""


def _find(content: bytes, program: Program) -> str:
    model = onnx.load_model_from_string(content)
    names = [name for node in model.graph.node for name in node.output if name]
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = Program(Session(model.SerializeToString(), "cpu"), program.layout)
    samples = Samples(program.layout.signature())
    inputs = samples.inputs(1, _LONG)
    timed = [port.spec.has_time_axis for port in program.layout.inputs]
    short = [array[:, :_SHORT] if has_time else array for array, has_time in zip(inputs, timed, strict=True)]
    runs = [
        dict(zip(names, session.raw(names, session.feed(each, samples.fresh(1))[0]), strict=True))
        for each in (inputs, short)
    ]
    maker = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if any(name and _looks_ahead(runs[0][name], runs[1][name]) for name in node.output):
            return label(_summary(node, maker, runs) or node)
    return ""


def _looks_ahead(long: Array, short: Array) -> bool:
    """Whether the first timesteps differ; False where there is no time axis."""
    if not isinstance(long, np.ndarray) or long.ndim != short.ndim:
        return False
    axes = [axis for axis, sizes in enumerate(zip(long.shape, short.shape, strict=True)) if sizes[0] != sizes[1]]
    if len(axes) != 1 or (long.shape[axes[0]], short.shape[axes[0]]) != (_LONG, _SHORT):
        return False
    return not compare([long.take(range(_SHORT), axes[0])], [short])[1]


def _summary(node: NodeProto, maker: dict[str, NodeProto], runs: list[dict[str, Array]]) -> NodeProto | None:
    """The node that makes an input of one size for any number of timesteps, but with other values."""
    for name in node.input:
        long, short = (run.get(name) for run in runs)
        if long is None or short is None or not isinstance(long, np.ndarray):
            continue
        if long.shape == short.shape and not compare([long], [short])[1]:
            return maker[name]
    return None
