"""A reading of a graph's axes tried out: it runs at several sizes, and the outputs' axes show in their shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from onnx import ValueInfoProto

from recurra.models.axes import Plan
from recurra.models.config import TensorConfig
from recurra.models.draft import draft
from recurra.models.graph import Dims, dims_of, dtype_of
from recurra.models.layout import Layout, Port
from recurra.models.prepare import Prepared
from recurra.models.program import Program
from recurra.models.provider import ERRORS
from recurra.models.refusal import ModelRefused
from recurra.models.roles import is_named
from recurra.models.samples import Samples
from recurra.models.session import Session
from recurra.models.signature import TensorSpec

Shape = tuple[int, ...]

# Sizes that are unlikely to be a model's own, so that an output's axis of this size is recognised.
_ROWS: Final = (2, 3)
_TIMESTEPS: Final = (5, 7)
_FAILURES: Final[tuple[type[Exception], ...]] = (ModelRefused, *ERRORS)


@dataclass(frozen=True)
class _Seen:
    """The shapes that one tensor came out with: at a base size, with more rows, more timesteps; None: not tried."""

    rows: int
    timesteps: int
    base: Shape
    wide: Shape | None
    long: Shape | None


def probe(session: Session, prepared: Prepared, plan: Plan) -> tuple[Layout, tuple[str, ...]]:
    """The layout that `plan` leads to, and notes for people. Raises ModelRefused if the graph does not run so."""
    layout = draft(prepared, plan)
    usual = next(iter(plan.inputs.values())).batch
    try:
        return _settle(session, prepared, layout, usual)
    except _FAILURES as error:
        if not layout.batchable:
            raise ModelRefused(_failure(error)) from error
        note = f"its batch axis is not free: {_failure(error)}"
    try:
        layout, notes = _settle(session, prepared, replace(layout, batchable=False), usual)
    except _FAILURES as error:
        raise ModelRefused(_failure(error)) from error
    return layout, (note, *notes)


def _settle(session: Session, prepared: Prepared, layout: Layout, usual: int | None) -> tuple[Layout, tuple[str, ...]]:
    """`layout` with the outputs that running it shows. Raises one of _FAILURES."""
    seen = _run(session, prepared, layout)
    _check_states(layout, seen[len(prepared.outputs) :])
    outputs = [
        _output(value, layout, each, usual, prepared.config.outputs.get(value.name, TensorConfig()))
        for value, each in zip(prepared.outputs, seen, strict=False)
    ]
    layout = replace(layout, outputs=tuple(outputs))
    lone = [port.spec.name for port in outputs if port.batch_axis is None]
    if layout.batchable and lone:
        return replace(layout, batchable=False), (f"output '{lone[0]}' has no batch axis",)
    return layout, ()


def _failure(error: Exception) -> str:
    if isinstance(error, ModelRefused):
        return str(error)
    return (
        f"it does not run: {' '.join(str(error).split())[:400]}; if it takes only chunks of certain sizes, or an input "
        "has one right value, say so in model.toml: chunk_sizes = [...] or constant = ... under [inputs.NAME]"
    )


def _run(session: Session, prepared: Prepared, layout: Layout) -> list[_Seen]:
    """Outputs, then new states, at several sizes."""
    names = [value.name for value in prepared.outputs] + [state.output for state in layout.states]
    program, signature = Program(session, layout), layout.signature()

    def shapes(rows: int, timesteps: int) -> list[Shape]:
        samples = Samples(signature)
        inputs = samples.inputs(rows, timesteps)
        if layout.stepwise:
            inputs = program.step(inputs, 0)
        fed, _ = program.feed(inputs, samples.fresh(rows))
        return [np.shape(array) for array in program.raw(names, fed)]

    rows = _ROWS[0] if layout.batchable else 1
    sizes = (1,) if layout.stepwise else layout.chunk_sizes or _TIMESTEPS
    base = shapes(rows, sizes[0])
    wide = shapes(_ROWS[1], sizes[0]) if layout.batchable else [None] * len(base)
    long = shapes(rows, sizes[1]) if len(sizes) > 1 else [None] * len(base)
    return [_Seen(rows, sizes[0], *each) for each in zip(base, wide, long, strict=True)]


def _check_states(layout: Layout, seen: list[_Seen]) -> None:
    for state, each in zip(layout.states, seen, strict=True):
        expected = list(state.spec.shape)
        if state.batched:
            expected.insert(state.spec.batch_axis, each.rows)
        if list(each.base) != expected:
            raise ModelRefused(
                f"state '{state.spec.name}' goes in as '{state.input}' with shape {expected}, but comes out as "
                f"'{state.output}' with shape {list(each.base)}; correct the pair in model.toml"
            )


def _output(value: ValueInfoProto, layout: Layout, seen: _Seen, usual: int | None, given: TensorConfig) -> Port:
    """An output's axes: the one that grows with the rows, the one that grows with the timesteps."""
    shape = seen.base
    declared = _declared(value, len(shape))
    for key, axis in (("batch_axis", given.batch_axis), ("time_axis", given.time_axis)):
        if axis is not None and axis >= len(shape):
            raise ModelRefused(f"model.toml: [outputs.{value.name}] {key} = {axis}, but it has {len(shape)} axes")
    time = _time_axis(given, layout, seen, declared)
    batch = _batch_axis(given, seen, declared, time, usual)
    if batch is not None and batch == time:
        raise ModelRefused(f"output '{value.name}' has batch and time in one axis; reshape it in the graph")
    skip = 0
    if time is not None and not layout.stepwise:
        skip = shape[time] - seen.timesteps
        if skip and skip not in {port.context for port in layout.inputs}:
            raise ModelRefused(
                f"output '{value.name}' has {shape[time]} timesteps for a chunk of {seen.timesteps}: only one for each "
                "is served. If a convolution takes them, give it context = SAMPLES under [inputs.NAME]; if this is no "
                f"time axis, say time_axis = false under [outputs.{value.name}]"
            )
    free = any(None in port.spec.shape for port in layout.inputs)
    rest = tuple(
        None if free and not isinstance(declared[axis], int) else size
        for axis, size in enumerate(shape)
        if axis not in (batch, time)
    )
    spec = TensorSpec(value.name, dtype_of(value), rest, layout.stepwise or time is not None)
    return Port(spec, batch, time, skip=skip)


def _declared(value: ValueInfoProto, rank: int) -> Dims:
    """Declared sizes where they can be true."""
    dims = dims_of(value) if value.type.tensor_type.HasField("shape") else ()
    return dims if len(dims) == rank else (None,) * rank


def _time_axis(given: TensorConfig, layout: Layout, seen: _Seen, declared: Dims) -> int | None:
    if given.time_axis is not None:
        return None if given.time_axis is False else int(given.time_axis)
    if layout.stepwise:  # a time axis of size 1 is where the inputs have theirs
        timed = [port for port in layout.inputs if port.time_axis is not None]
        fits = [port.time_axis for port in timed if len(port.spec.shape) + 2 <= len(seen.base)]
        return next((axis for axis in fits if axis is not None and seen.base[axis] == 1), None)
    if seen.long is not None:
        return _grown(seen.base, seen.long)
    found = [
        axis for axis, size in enumerate(seen.base) if size == seen.timesteps and not isinstance(declared[axis], int)
    ]
    named = [axis for axis in found if is_named(declared[axis], "time")]
    return next(iter(named or found), None)


def _batch_axis(given: TensorConfig, seen: _Seen, declared: Dims, time: int | None, usual: int | None) -> int | None:
    if given.batch_axis is not None:
        return given.batch_axis
    if seen.wide is not None:
        return _grown(seen.base, seen.wide)
    ones = [axis for axis, size in enumerate(seen.base) if size == 1 and axis != time]
    named = [axis for axis in ones if is_named(declared[axis], "batch")]
    if named or usual is None:
        return next(iter(named), None)
    return usual if usual in ones else next(iter(ones), None)


def _grown(base: Shape, other: Shape) -> int | None:
    if len(base) != len(other):
        return None
    axes = [axis for axis, (size, larger) in enumerate(zip(base, other, strict=True)) if size != larger]
    return next(iter(axes), None)
