"""Chunks of several lengths in one batch, padded: a form of the graph that is told each row's length, and its proof.

A graph that gives its last output alone has none: it takes what stands at the end of the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import onnx

from recurra.models.graph import blanks
from recurra.models.layout import Constant
from recurra.models.lengths import with_lengths
from recurra.models.program import Program
from recurra.models.provider import ERRORS
from recurra.models.refusal import ModelRefused
from recurra.models.samples import Samples, row
from recurra.models.selftest import compare
from recurra.models.signature import Array, Signature

_FAILURES: Final[tuple[type[Exception], ...]] = (ModelRefused, *ERRORS)
_ROWS: Final = (2, 5, 3)  # timesteps of each row


def ragged(content: bytes, program: Program) -> Program | None:
    """A program whose every run is told the rows' lengths, where padding changes nothing; else None."""
    layout = program.layout
    if layout.stepwise or layout.chunk_sizes or not layout.batchable or any(port.context for port in layout.inputs):
        return None
    model = onnx.load_model_from_string(content)
    name = with_lengths(model, {port.input: port for port in layout.states})
    if not name:
        return None
    lengths = Constant(name, np.zeros((), np.int32), batch_axis=0, counts=True)
    try:
        session = program.session.another(model.SerializeToString())
        found = Program(session, replace(layout, constants=(*layout.constants, lengths)))
        return found if _same(found, program, blanks(model.graph)) else None
    except _FAILURES:
        return None


def _same(padded: Program, plain: Program, marks: Sequence[float]) -> bool:
    """Whether each row of a padded batch gets what it gets alone, in outputs up to its length and in states.

    Zeros are what the server pads with, and may be what a mask or a branch of the graph goes by.
    """
    signature = plain.layout.signature()
    samples = Samples(signature)
    _, states = plain.run(samples.inputs(len(_ROWS), max(_ROWS)), samples.fresh(len(_ROWS)))
    inputs = samples.inputs(len(_ROWS), max(_ROWS))
    tried = [inputs, *(samples.blanked(inputs, mark, first=1) for mark in marks)]
    tried += [_zeroed(each, signature) for each in tried]
    return all(_each_alone(padded, plain, each, states) for each in tried)


def _zeroed(inputs: Sequence[Array], signature: Signature) -> list[Array]:
    """The inputs with zeros as padding."""
    zeroed = [array.copy() for array in inputs]
    for array, spec in zip(zeroed, signature.inputs, strict=True):
        for index, length in enumerate(_ROWS):
            if spec.has_time_axis:
                array[index, length:] = 0
    return zeroed


def _each_alone(padded: Program, plain: Program, inputs: Sequence[Array], states: Sequence[Array]) -> bool:
    signature = plain.layout.signature()
    outputs, news = padded.run(inputs, states, np.array(_ROWS))
    for index, length in enumerate(_ROWS):
        here = slice(index, index + 1)
        chunk = [
            array[here, :length] if spec.has_time_axis else array[here]
            for array, spec in zip(inputs, signature.inputs, strict=True)
        ]
        each = [row(state, index, spec) for state, spec in zip(states, signature.states, strict=True)]
        alone, ends = plain.run(chunk, each)
        found = [
            output[here, :length] if spec.has_time_axis else output[here]
            for output, spec in zip(outputs, signature.outputs, strict=True)
        ]
        found += [row(state, index, spec) for state, spec in zip(news, signature.states, strict=True)]
        if not compare(found, [*alone, *ends], exact=plain.session.exact)[1]:
            return False
    return True
