"""Chunks of several lengths in one batch, padded: a form of the graph that is told each row's length, and its proof.

A graph that gives its last output alone has none: it takes what stands at the end of the longest row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import onnx

from recurra.models.layout import Constant
from recurra.models.lengths import with_lengths
from recurra.models.program import Program
from recurra.models.refusal import ModelRefused
from recurra.models.samples import Samples, row
from recurra.models.selftest import compare
from recurra.models.session import ERRORS, Session

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
        session = Session(model.SerializeToString(), "cuda" if program.on_gpu else "cpu")
        found = Program(session, replace(layout, constants=(*layout.constants, lengths)))
        return found if _same(found, program) else None
    except _FAILURES:
        return None


def _same(padded: Program, plain: Program) -> bool:
    """Whether each row of a padded batch gets what it gets alone, in outputs up to its length and in states."""
    signature = plain.layout.signature()
    samples, timed = Samples(signature), [spec.has_time_axis for spec in signature.inputs]
    _, states = plain.run(samples.inputs(len(_ROWS), max(_ROWS)), samples.fresh(len(_ROWS)))
    inputs = samples.inputs(len(_ROWS), max(_ROWS))
    outputs, news = padded.run(inputs, states, np.array(_ROWS))
    for index, length in enumerate(_ROWS):
        here = slice(index, index + 1)
        chunk = [
            array[here, :length] if has_time else array[here] for array, has_time in zip(inputs, timed, strict=True)
        ]
        each = [row(state, index, spec) for state, spec in zip(states, signature.states, strict=True)]
        alone, ends = plain.run(chunk, each)
        found = [
            output[here, :length] if spec.has_time_axis else output[here]
            for output, spec in zip(outputs, signature.outputs, strict=True)
        ]
        found += [row(state, index, spec) for state, spec in zip(news, signature.states, strict=True)]
        if not compare(found, [*alone, *ends])[1]:
            return False
    return True
