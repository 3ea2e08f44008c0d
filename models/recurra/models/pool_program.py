"""A model that runs on states in a pool: only places, inputs and outputs cross to the device and back."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from recurra.models.graph import subgraphs
from recurra.models.pool import FRESH, SCRATCH, Places, Pool
from recurra.models.pooled import Pooled, pooled
from recurra.models.program import Program
from recurra.models.provider import CPU, ERRORS
from recurra.models.refusal import ModelRefused
from recurra.models.samples import Samples
from recurra.models.selftest import compare
from recurra.models.session import Bound, Session
from recurra.models.signature import Array
from recurra.models.single import single

_PIECE: Final = 32  # timesteps; a longer chunk comes in pieces
_MOST_BOUND: Final = 64  # shapes
_FAILURES: Final[tuple[type[Exception], ...]] = (ModelRefused, *ERRORS)


class Result(NamedTuple):
    """What a run gave to N sessions.

    Attributes:
        outputs: as Program.run.
        finite: (N,) bool, whose new state holds neither a NaN nor an infinity.
    """

    outputs: list[Array]
    finite: NDArray[np.bool_]


class PoolProgram:
    """A model on states in a pool. One thread at a time may run it."""

    def __init__(self, program: Program, pool: Pool, max_batch: int) -> None:
        """Raises ModelRefused for a graph that has no such form, or that the runtime does not load."""
        self._program, self._pool = program, pool
        model = onnx.load_model_from_string(program.session.model)
        self._form: Pooled = pooled(model, program.layout)
        self._buckets = buckets(max_batch)
        profiles = _profiles(program, self._form, pool, max_batch)
        self._session = program.session.another(self._form.model, profiles=profiles)
        self._bound: OrderedDict[Any, tuple[Places, Bound]] = OrderedDict()
        self._recorded: dict[Any, tuple[Places, Bound]] = {}
        # The outputs that go to the host.
        self._told = [port.spec.name for port in program.layout.outputs]
        self._told += [group.drift for group in self._form.groups if group.drift]

    @property
    def nodes(self) -> dict[str, int]:
        """How many nodes each provider runs."""
        return self._session.nodes

    def run(
        self,
        inputs: Sequence[Array],
        places: Sequence[Places],
        lengths: Array | None = None,
    ) -> Result:
        """Advances N sessions by a chunk; see Program.run.

        Args:
            places: (N,) each: where the states are, where the new ones go, and, for a graph of one timestep a call,
                more for those in between. No place stands twice but FRESH in the first.

        """
        program, (source, target, *between) = self._program, places
        if not program.layout.stepwise:
            return self._call(inputs, source, target, lengths)
        count, steps = program.timesteps(inputs), []
        finite = np.ones(len(source), bool)
        for step in range(count):
            # The last one writes to `target`; before it, this and the other take turns.
            goal = target if (count - 1 - step) % 2 == 0 else between[0]
            result = self._call(program.step(inputs, step), source, goal, None)
            steps.append(program.untimed(result.outputs))
            finite, source = result.finite, goal
        outputs = [np.stack(each, axis=1) for each in zip(*steps, strict=True)]
        return Result(outputs, finite)

    def record(self) -> str:
        """Have a timestep of each bucket played as a CUDA graph from now on; empty, or why that cannot be.

        The recording runs on places that are nobody's: it runs more than once.
        """
        reason = self._varying()
        if reason:
            return reason
        try:
            reason = self._try_to_record()
        except _FAILURES as error:
            reason = f"the runtime does not record it: {error}"
        except Exception as error:  # noqa: BLE001 # as in load_file: a file may be wrong in ways nobody thought of
            reason = f"its graph for single timesteps cannot be made: {type(error).__name__}: {error}"
        if reason:
            self._recorded.clear()
        return reason

    def _try_to_record(self) -> str:
        model = onnx.load_model_from_string(self._form.model)
        single(model, self._times())
        reason = self._left(model)
        if reason:
            return reason
        with _nothing_collected():
            self._record_all(self._program.session.another(model.SerializeToString(), cuda_graphs=True))
        return "" if self._is_played_right() else "a timestep that is played differs from one that is run"

    def _record_all(self, session: Session) -> None:
        specs, ones = self._program.layout.signature().inputs, {True: (1,), False: ()}
        for number, size in enumerate(self._buckets):
            inputs = [np.zeros((size, *ones[s.has_time_axis], *(n or 0 for n in s.shape)), s.dtype) for s in specs]
            fed = self._fed(self._program.step(inputs, 0) if self._program.layout.stepwise else inputs)
            self._record(session.bound(1 + number), session, fed, size)

    def _record(self, bound: Bound, session: Session, fed: Mapping[str, Array], size: int) -> None:
        places = np.full((size, 2), (FRESH, SCRATCH))
        self._bind_pools(bound)
        for name, array in zip(self._told, self._run(fed, places), strict=True):
            bound.give(name, session.buffer(array.shape, array.dtype), tell=True)
        self._recorded[self._key(fed, size)] = places, bound
        self._run(fed, places)

    def _is_played_right(self) -> bool:
        """Whether all give what a run gives: what a recording copies from the host may be gone when it is played."""
        samples, recorded = Samples(self._program.layout.signature()), self._recorded
        for size in self._buckets:
            inputs = samples.inputs(size, 1)
            played = self._some_timesteps(inputs, size)
            self._recorded = {}
            plain = self._some_timesteps(inputs, size)
            self._recorded = recorded
            if not compare(played, plain, exact=self._program.session.exact)[1]:
                return False
        self._bound.clear()
        return True

    def _some_timesteps(self, inputs: Sequence[Array], size: int) -> list[Array]:
        """The outputs of one; of a session alone also of a second, which tells what its state was."""
        starts = (FRESH, SCRATCH) if size == 1 else (FRESH,)
        runs = [self.run(inputs, [np.full(size, start), *[np.full(size, SCRATCH)] * 2]) for start in starts]
        return [array for run in runs for array in run.outputs]

    def _varying(self) -> str:
        """What of a timestep is not the same at every call."""
        layout = self._program.layout
        if layout.constants:
            return f"'{layout.constants[0].name}' is fed at every call"
        if layout.chunk_sizes and 1 not in layout.chunk_sizes:
            return "it takes no single timestep"
        open_ = [port.spec.name for port in layout.inputs if None in port.spec.shape]
        return f"'{open_[0]}' has a size that may be any" if open_ else ""

    def _left(self, model: ModelProto) -> str:
        """What of a graph for single timesteps cannot be recorded."""
        inner = [node.op_type for node in model.graph.node if subgraphs(node)]
        if inner:
            return f"it has a {inner[0]}"
        if not self._session.on_gpu:
            return ""
        on_cpu = self._program.session.another(model.SerializeToString()).nodes.get(CPU, 0)
        return f"{on_cpu} of its nodes run on the CPU" if on_cpu else ""

    def _times(self) -> dict[str, int]:
        """Where each of the graph's inputs has its time, of those that have it."""
        layout, came = self._program.layout, self._form.came
        axes = {port.spec.name: port.time_axis for port in layout.inputs if not port.context}
        looking = [port.spec for port in layout.inputs if port.context]
        axes |= {came[spec.name]: 1 for spec in looking if spec.has_time_axis and not layout.stepwise}
        return {name: axis for name, axis in axes.items() if axis is not None}

    def _call(self, inputs: Sequence[Array], source: Places, target: Places, lengths: Array | None) -> Result:
        count = len(source)
        size = next(bucket for bucket in self._buckets if bucket >= count)
        if size > count:
            inputs = [_filled(array, size, 0) for array in inputs]
            lengths = lengths if lengths is None else _filled(lengths, size, 1)
        fed = self._fed(inputs)
        places, _ = self._binding(fed, size)
        places[:count, 0], places[:count, 1] = source, target
        places[count:] = FRESH, SCRATCH
        results = self._run(fed, places, self._program.constants(inputs, lengths))
        outputs = [
            port.from_graph(array)[:count].copy()
            for port, array in zip(self._program.layout.outputs, results, strict=False)
        ]
        finite = np.ones(count, bool)
        for drift in results[len(outputs) :]:
            finite &= drift[:count] == 0
        return Result(outputs, finite)

    def _run(self, fed: Mapping[str, Array], places: Places, lent: Mapping[str, Array] | None = None) -> list[Array]:
        """What is told of a whole bucket: views."""
        _, bound = self._binding(fed, len(places))
        bound.feed(self._form.places, places)
        for name, array in fed.items():
            bound.feed(name, array)
        for name, array in (lent or {}).items():
            bound.lend(name, array)
        return bound.run()

    def _fed(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """The graph's inputs by name; what has a context in front is laid out in the graph."""
        return {
            self._form.came.get(port.spec.name, port.spec.name): array if port.context else port.to_graph(array)
            for port, array in zip(self._program.layout.inputs, inputs, strict=True)
        }

    def _binding(self, fed: Mapping[str, Array], size: int) -> tuple[Places, Bound]:
        """What is bound for these shapes; the ones that were not used longest are let go."""
        key = self._key(fed, size)
        if key in self._recorded:
            return self._recorded[key]
        if key not in self._bound:
            bound = self._session.bound()
            self._bound[key] = np.zeros((size, 2), np.int64), bound
            self._bind_pools(bound)
            for name in self._told:
                bound.give(name)
            if len(self._bound) > _MOST_BOUND:
                self._bound.popitem(last=False)
        self._bound.move_to_end(key)
        return self._bound[key]

    def _key(self, fed: Mapping[str, Array], size: int) -> Any:
        return size, *(array.shape for array in fed.values())

    def _bind_pools(self, bound: Bound) -> None:
        for group in self._form.groups:
            bound.take(group.pool, self._pool.buffers[group.dtype])
            bound.give(group.written, self._pool.buffers[group.dtype])


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Memory of the device that is freed meanwhile, on any thread, would end a recording."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _profiles(program: Program, form: Pooled, pool: Pool, max_batch: int) -> dict[str, str]:
    """TensorRT's least, usual and largest sizes: of a timestep of one session up to a piece of the largest batch.

    Empty where an input has a size that may be any.
    """
    specs = program.layout.signature().inputs
    if any(None in spec.shape for spec in specs) or program.layout.constants:
        return {}
    longest = 1 if program.layout.stepwise else _PIECE
    found = {}
    for name, rows, timesteps in (("min", 1, 1), ("opt", max_batch, 1), ("max", max_batch, longest)):
        shapes = {form.places: (rows, 2)} | {group.pool: pool.buffers[group.dtype].shape() for group in form.groups}
        for port in program.layout.inputs:
            timed = port.spec.has_time_axis and not (program.layout.stepwise and port.time_axis is None)
            came = np.empty((rows, *([timesteps] if timed else []), *(n or 0 for n in port.spec.shape)), np.bool_)
            there = form.came.get(port.spec.name, port.spec.name)
            shapes[there] = (came if port.context else port.to_graph(came)).shape
        each = (f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
        found[f"trt_profile_{name}_shapes"] = ",".join(each)
    return found


def buckets(max_batch: int) -> tuple[int, ...]:
    """The sizes of batches that are run: a smaller one is filled up."""
    return (*(1 << power for power in range((max_batch - 1).bit_length())), max_batch)


def _filled(array: Array, size: int, value: int) -> Array:
    """(N, ...) with rows of `value` up to `size` of them."""
    filled = np.full((size, *array.shape[1:]), value, array.dtype)
    filled[: len(array)] = array
    return filled
