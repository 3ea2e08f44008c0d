"""Chunks of several lengths in one batch: native nodes stop each row at its own length, the rest of a graph may not.

A graph that gives its last output alone does not: it takes what stands at the end of the longest row.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from recurra.models.carried import is_loop
from recurra.models.graph import is_recurrent, walk
from recurra.models.layout import Layout
from recurra.models.names import all_names, unused
from recurra.models.program import Program
from recurra.models.refusal import ModelRefused
from recurra.models.samples import Samples, row
from recurra.models.selftest import compare
from recurra.models.session import ERRORS, Session
from recurra.models.signature import Array

LENGTHS: Final = "recurra_lengths"
_POSITION: Final = 4  # of sequence_lens among a native node's inputs
_FAILURES: Final[tuple[type[Exception], ...]] = (ModelRefused, *ERRORS)
_ROWS: Final = (2, 5, 3)  # timesteps of each row


def with_lengths(model: ModelProto) -> str:
    """Gives all native nodes the lengths of their rows from a new input, int32 (N,), in place; its name.

    Empty, and nothing done, where the graph has no native node, or a Loop or Scan, which knows of no lengths.
    """
    nodes = list(walk(model.graph))
    natives = [node for node in nodes if is_recurrent(node)]
    if not natives or any(map(is_loop, nodes)):
        return ""
    name = unused(LENGTHS, all_names(model.graph))
    for node in natives:
        while len(node.input) <= _POSITION:
            node.input.append("")
        node.input[_POSITION] = node.input[_POSITION] or name
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, [None]))
    return name


def holds(content: bytes, program: Program) -> bool:
    """Whether a padded batch gives each row what it gets alone, in outputs up to its length and in states."""
    layout = program.layout
    if layout.stepwise or layout.chunk_sizes or not layout.batchable or any(port.context for port in layout.inputs):
        return False
    model = onnx.load_model_from_string(content)
    name = with_lengths(model)
    if not name:
        return False
    try:
        session = Session(model.SerializeToString(), "cuda" if program.on_gpu else "cpu")
        return _same(Program(session, layout), program, name)
    except _FAILURES:
        return False


def _same(ragged: Program, plain: Program, name: str) -> bool:
    layout, signature = plain.layout, plain.layout.signature()
    samples, timed = Samples(signature), [port.spec.has_time_axis for port in layout.inputs]
    _, states = plain.run(samples.inputs(len(_ROWS), max(_ROWS)), samples.fresh(len(_ROWS)))
    inputs = samples.inputs(len(_ROWS), max(_ROWS))
    outputs, news = _padded(ragged, layout, inputs, states, name)
    for index, length in enumerate(_ROWS):
        chunk = [
            array[index : index + 1, :length] if has_time else array[index : index + 1]
            for array, has_time in zip(inputs, timed, strict=True)
        ]
        each = [row(state, index, spec) for state, spec in zip(states, signature.states, strict=True)]
        alone, ends = plain.run(chunk, each)
        found = [
            output[index : index + 1, :length] if spec.has_time_axis else output[index : index + 1]
            for output, spec in zip(outputs, signature.outputs, strict=True)
        ]
        found += [row(state, index, spec) for state, spec in zip(news, signature.states, strict=True)]
        if not compare(found, [*alone, *ends])[1]:
            return False
    return True


def _padded(
    program: Program, layout: Layout, inputs: list[Array], states: list[Array], name: str
) -> tuple[list[Array], list[Array]]:
    fed, _ = program.feed(inputs, states)
    fed[name] = np.array(_ROWS, np.int32)
    for constant in layout.constants:
        if constant.counts:
            fed[constant.name] = np.array(_ROWS, constant.value.dtype)
    names = [port.spec.name for port in layout.outputs] + [state.output for state in layout.states]
    results = program.raw(names, fed)
    count = len(layout.outputs)
    outputs = [port.from_graph(array) for port, array in zip(layout.outputs, results[:count], strict=True)]
    return outputs, results[count:]
