"""The layout of a graph's inputs and states, from one reading of its axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ValueInfoProto

from recurra.models.axes import Plan
from recurra.models.config import TensorConfig
from recurra.models.graph import Dims, dims_of, dtype_of
from recurra.models.layout import Layout, Port, StatePort
from recurra.models.pairs import Pair
from recurra.models.prepare import Prepared
from recurra.models.refusal import ModelRefused
from recurra.models.signature import Array, StateSpec, TensorSpec


def draft(prepared: Prepared, plan: Plan) -> Layout:
    """Everything but the outputs. Raises ModelRefused where model.toml does not fit the graph."""
    values = {value.name: value for value in prepared.inputs}
    timed = {
        name: axes.time is not None and dims_of(values[name])[axes.time] != 1 for name, axes in plan.inputs.items()
    }
    stepwise = not any(timed.values())
    none = [name for name in values if prepared.config.inputs.get(name, TensorConfig()).time_axis is False]
    ports = []
    for name, value in values.items():
        given = prepared.config.inputs.get(name, TensorConfig())
        held = not dims_of(value) or (name in none and len(none) < len(values))
        time = plan.inputs[name].time if (stepwise and not held) or timed[name] else None
        batch = plan.inputs[name].batch
        has_time = not held if stepwise else time is not None
        spec = TensorSpec(
            name,
            dtype_of(value),
            _shape(value, batch, time, given),
            has_time,
            prepared.bounds.get(name),
        )
        _check_context(spec, given, along_time=timed[name])
        ports.append(Port(spec, batch, time, given.context))
    states = [_state(pair, prepared, plan.states[pair.input]) for pair in prepared.pairs]
    axes = [(values[port.spec.name], port.batch_axis) for port in ports]
    graph_inputs = {value.name: value for value in prepared.graph.input}
    axes += [(graph_inputs[state.input], state.spec.batch_axis if state.batched else None) for state in states]
    return Layout(
        inputs=tuple(ports),
        outputs=(),
        states=tuple(states),
        constants=prepared.constants,
        stepwise=stepwise,
        batchable=all(axis is not None and dims_of(value)[axis] != 1 for value, axis in axes),
        chunk_sizes=() if stepwise else _chunk_sizes(prepared, ports),
    )


def _shape(value: ValueInfoProto, batch: int | None, time: int | None, given: TensorConfig) -> tuple[int | None, ...]:
    """One timestep of one session, without the context that the graph wants beside it."""
    dims = dims_of(value)
    shape = [size if isinstance(size, int) else None for axis, size in enumerate(dims) if axis not in (batch, time)]
    if shape and (time is None or dims[time] == 1):
        last = shape[-1]
        if last is not None:
            shape[-1] = last - given.context
        elif len(given.chunk_sizes) == 1:
            shape[-1] = given.chunk_sizes[0]
    return tuple(shape)


def _check_context(spec: TensorSpec, given: TensorConfig, *, along_time: bool) -> None:
    if not given.context:
        return
    where = f"model.toml: [inputs.{spec.name}] context = {given.context}"
    known = spec.shape if along_time else spec.shape[:-1]
    if (
        (not along_time and not spec.shape)
        or None in known
        or any(size is not None and size <= 0 for size in spec.shape)
    ):
        raise ModelRefused(f"{where} does not fit the shape {list(spec.shape)} of one timestep")


def _chunk_sizes(prepared: Prepared, ports: Sequence[Port]) -> tuple[int, ...]:
    found: set[tuple[int, ...]] = set()
    values = {value.name: value for value in prepared.inputs}
    for port in ports:
        given = prepared.config.inputs.get(port.spec.name, TensorConfig())
        if port.time_axis is None:
            continue
        size = dims_of(values[port.spec.name])[port.time_axis]
        if isinstance(size, int):
            found.add((size - port.context,))
        elif given.chunk_sizes:
            found.add(given.chunk_sizes)
    if len(found) > 1 or any(size < 1 for sizes in found for size in sizes):
        raise ModelRefused(f"model.toml: the inputs' chunk_sizes do not agree: {sorted(found)}")
    return found.pop() if found else ()


def _state(pair: Pair, prepared: Prepared, batch_axis: int | None) -> StatePort:
    value = next(value for value in prepared.graph.input if value.name == pair.input)
    dtype, fresh = dtype_of(value), pair.fresh
    dims: Dims = tuple(size for axis, size in enumerate(dims_of(value)) if axis != batch_axis)
    if isinstance(fresh, str):
        fresh = _file(prepared, pair, fresh)
    if isinstance(fresh, float):
        if not all(isinstance(size, int) for size in dims):
            raise ModelRefused(
                f"state '{pair.name}' has a size that the file does not tell ({list(dims)}); give a fresh state of the "
                f"right shape in model.toml: fresh = 'file.npy' under [[states]] with name = '{pair.name}'"
            )
        fresh = np.full([size for size in dims if isinstance(size, int)], fresh)
    fits = len(dims) == fresh.ndim and all(
        not isinstance(size, int) or size == real for size, real in zip(dims, fresh.shape, strict=True)
    )
    if not fits:
        raise ModelRefused(
            f"state '{pair.name}': the fresh value has shape {list(fresh.shape)}, but needs {list(dims)}"
        )
    fresh = np.ascontiguousarray(fresh, dtype).reshape(fresh.shape)
    spec = StateSpec(pair.name, pair.layer, dtype, fresh.shape, batch_axis or 0, fresh)
    return StatePort(spec, pair.input, pair.output, batched=batch_axis is not None)


def _file(prepared: Prepared, pair: Pair, name: str) -> Array:
    path = (prepared.folder / name).resolve()
    if not path.is_relative_to(prepared.folder.resolve()):
        raise ModelRefused(f"state '{pair.name}': fresh = '{name}' lies outside of the model's folder")
    try:
        loaded: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelRefused(f"state '{pair.name}': fresh = '{name}' cannot be read: {error}") from error
    return loaded
