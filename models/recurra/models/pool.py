"""States of many sessions where the model runs, and a model that runs on them there.

Only places, inputs and outputs cross to the device and back, and states that are asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from recurra.models.pooled import Pooled, groups, pooled
from recurra.models.program import Program
from recurra.models.session import Bound, Session
from recurra.models.signature import Array, Signature

Places = NDArray[np.int64]

FRESH: Final = 0  # the place of the fresh state: nobody writes there
SCRATCH: Final = 1  # where rows that only fill up a batch write
FIRST: Final = 2  # of the places that sessions get
_MOST_BOUND: Final = 64  # shapes


class Crossed(NamedTuple):
    """Bytes of states that went over the bus."""

    to_host: int
    to_device: int


class Result(NamedTuple):
    """What a run gave to N sessions.

    Attributes:
        outputs: as Program.run.
        rows: the new states, (N, state_bytes) uint8; None where they were not asked for.
        finite: (N,) bool, whose new state holds neither a NaN nor an infinity.
    """

    outputs: list[Array]
    rows: NDArray[np.uint8] | None
    finite: NDArray[np.bool_]


class Pool:
    """Rows of device memory, a state each: `places` of them, FRESH and SCRATCH included.

    Attributes:
        buffers: by dtype, (places, width).
    """

    def __init__(self, signature: Signature, beside: Session, places: int) -> None:
        """In the memory of the device of the session that it is `beside`."""
        self._signature = signature
        self._groups = groups(signature.states)
        self._to_host = self._to_device = 0
        self._reader, self._writer = beside.another(_reader(self._widths())), beside.another(_writer(self._widths()))
        self.buffers = {dtype: beside.buffer((places, width), dtype) for dtype, width in self._widths().items()}
        fresh = [np.ascontiguousarray(spec.fresh).view(np.uint8).reshape(-1) for spec in signature.states]
        self.write(np.array([FRESH]), np.concatenate(fresh)[None])
        self._to_device = 0

    @property
    def crossed(self) -> Crossed:
        """Since the start."""
        return Crossed(self._to_host, self._to_device)

    def read(self, places: Places) -> NDArray[np.uint8]:
        """The states at `places`, (N, state_bytes)."""
        bound = self._reader.bound()
        bound.feed("places", places)
        for dtype in self._groups:
            bound.take(f"pool_{dtype.name}", self.buffers[dtype])
            bound.give(f"rows_{dtype.name}")
        return self.joined(bound.run())

    def write(self, places: Places, rows: NDArray[np.uint8]) -> None:
        """Put states, (N, state_bytes), at `places`, which differ."""
        bound = self._writer.bound()
        bound.feed("places", places[:, None])
        for (dtype, states), columns in zip(self._groups.items(), self._cut(rows), strict=True):
            del states
            bound.feed(f"rows_{dtype.name}", columns)
            bound.take(f"pool_{dtype.name}", self.buffers[dtype])
            bound.give(f"written_{dtype.name}", self.buffers[dtype])
        bound.run()
        self._to_device += rows.nbytes

    def joined(self, parts: Sequence[Array]) -> NDArray[np.uint8]:
        """(N, state_bytes) out of each group's (N, width)."""
        raw = [np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1) for part in parts]
        self._to_host += sum(part.nbytes for part in raw)
        if len(raw) == 1:
            return raw[0]
        rows = np.empty((len(raw[0]), self._signature.state_bytes), np.uint8)
        for states, part in zip(self._groups.values(), raw, strict=True):
            at = 0
            for index in states:
                here = self._columns[index]
                size = here.stop - here.start
                rows[:, here] = part[:, at : at + size]
                at += size
        return rows

    @property
    def _columns(self) -> list[slice]:
        """Where each state is in a row of bytes."""
        ends = np.cumsum([spec.nbytes for spec in self._signature.states]).tolist()
        return [slice(end - spec.nbytes, end) for end, spec in zip(ends, self._signature.states, strict=True)]

    def _cut(self, rows: NDArray[np.uint8]) -> list[Array]:
        """Each group's (N, width)."""
        columns = self._columns
        parts = [np.concatenate([rows[:, columns[i]] for i in states], axis=1) for states in self._groups.values()]
        return [np.ascontiguousarray(part).view(dtype) for part, dtype in zip(parts, self._groups, strict=True)]

    def _widths(self) -> dict[np.dtype[Any], int]:
        specs = self._signature.states
        return {
            dtype: sum(specs[index].nbytes for index in states) // dtype.itemsize
            for dtype, states in self._groups.items()
        }


class PoolProgram:
    """A model on states in a pool. One thread at a time may run it."""

    def __init__(self, program: Program, pool: Pool, max_batch: int) -> None:
        """Raises ModelRefused for a graph that has no such form, or that the runtime does not load."""
        self._program, self._pool = program, pool
        model = onnx.load_model_from_string(program.session.model)
        self._form: Pooled = pooled(model, program.layout)
        self._session = program.session.another(self._form.model)
        self._buckets = buckets(max_batch)
        self._bound: OrderedDict[Any, tuple[Places, Bound]] = OrderedDict()
        self._outputs = [port.spec.name for port in program.layout.outputs]

    @property
    def nodes(self) -> dict[str, int]:
        """How many nodes each provider runs."""
        return self._session.nodes

    def run(
        self,
        inputs: Sequence[Array],
        places: Sequence[Places],
        lengths: Array | None = None,
        *,
        fetch: bool,
    ) -> Result:
        """Advances N sessions by a chunk; see Program.run.

        Args:
            places: (N,) each: where the states are, where the new ones go, and, for a graph of one timestep a call,
                more for those in between. No place stands twice but FRESH in the first.
            fetch: the new states are wanted on the host.

        """
        program, (source, target, *between) = self._program, places
        if not program.layout.stepwise:
            return self._call(inputs, source, target, lengths, fetch=fetch)
        count, steps = program.timesteps(inputs), []
        finite = np.ones(len(source), bool)
        for step in range(count):
            last = step == count - 1
            # The last one writes to `target`; before it, this and the other take turns.
            goal = target if (count - 1 - step) % 2 == 0 else between[0]
            result = self._call(program.step(inputs, step), source, goal, None, fetch=fetch and last)
            steps.append(program.untimed(result.outputs))
            finite, source = result.finite, goal
        outputs = [np.stack(each, axis=1) for each in zip(*steps, strict=True)]
        return Result(outputs, result.rows, finite)

    def _call(
        self, inputs: Sequence[Array], source: Places, target: Places, lengths: Array | None, *, fetch: bool
    ) -> Result:
        count = len(source)
        size = next(bucket for bucket in self._buckets if bucket >= count)
        if size > count:
            inputs = [_filled(array, size, 0) for array in inputs]
            lengths = lengths if lengths is None else _filled(lengths, size, 1)
        fed = self._fed(inputs)
        places, bound = self._binding(fed, size, fetch=fetch)
        places[:count, 0], places[:count, 1] = source, target
        places[count:] = FRESH, SCRATCH
        bound.feed(self._form.places, places)
        for name, array in fed.items():
            bound.feed(name, array)
        for name, array in self._program.constants(inputs, lengths).items():
            bound.lend(name, array)
        results = bound.run()
        outputs = [
            port.from_graph(array)[:count].copy()
            for port, array in zip(self._program.layout.outputs, results, strict=False)
        ]
        rest = results[len(outputs) :]
        drifts, rows = rest[: self._drifts], rest[self._drifts :]
        finite = np.ones(count, bool)
        for drift in drifts:
            finite &= drift[:count] == 0
        return Result(outputs, self._pool.joined(rows)[:count].copy() if fetch else None, finite)

    def _fed(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """The graph's inputs by name; what has a context in front is laid out in the graph."""
        return {
            self._form.came.get(port.spec.name, port.spec.name): array if port.context else port.to_graph(array)
            for port, array in zip(self._program.layout.inputs, inputs, strict=True)
        }

    @property
    def _drifts(self) -> int:
        return sum(bool(group.drift) for group in self._form.groups)

    def _binding(self, fed: Mapping[str, Array], size: int, *, fetch: bool) -> tuple[Places, Bound]:
        """What is bound for these shapes; the ones that were not used longest are let go."""
        key = size, fetch, *(array.shape for array in fed.values())
        if key not in self._bound:
            bound = self._session.bound()
            self._bound[key] = np.zeros((size, 2), np.int64), bound
            for group in self._form.groups:
                bound.take(group.pool, self._pool.buffers[group.dtype])
                bound.give(group.written, self._pool.buffers[group.dtype])
            for name in [*self._outputs, *self._more(fetch=fetch)]:
                bound.give(name)
            if len(self._bound) > _MOST_BOUND:
                self._bound.popitem(last=False)
        self._bound.move_to_end(key)
        return self._bound[key]

    def _more(self, *, fetch: bool) -> list[str]:
        drifts = [group.drift for group in self._form.groups if group.drift]
        return drifts + [group.rows for group in self._form.groups] if fetch else drifts


def buckets(max_batch: int) -> tuple[int, ...]:
    """The sizes of batches that are run: a smaller one is filled up."""
    return (*(1 << power for power in range((max_batch - 1).bit_length())), max_batch)


def _filled(array: Array, size: int, value: int) -> Array:
    """(N, ...) with rows of `value` up to `size` of them."""
    filled = np.full((size, *array.shape[1:]), value, array.dtype)
    filled[: len(array)] = array
    return filled


def _reader(widths: Mapping[np.dtype[Any], int]) -> bytes:
    """Pools and places (N,) to rows (N, width)."""
    nodes = [helper.make_node("Gather", [f"pool_{d.name}", "places"], [f"rows_{d.name}"], axis=0) for d in widths]
    return _model(nodes, widths, ["pool"], ["rows"], places=[None])


def _writer(widths: Mapping[np.dtype[Any], int]) -> bytes:
    """Pools, places (N, 1) and rows (N, width) to the pools."""
    nodes = [
        helper.make_node("ScatterND", [f"pool_{d.name}", "places", f"rows_{d.name}"], [f"written_{d.name}"])
        for d in widths
    ]
    return _model(nodes, widths, ["pool", "rows"], ["written"], places=[None, 1])


def _model(
    nodes: list[NodeProto], widths: Mapping[np.dtype[Any], int], takes: list[str], gives: list[str], places: list[Any]
) -> bytes:
    def infos(kinds: list[str]) -> list[ValueInfoProto]:
        return [
            helper.make_tensor_value_info(f"{kind}_{dtype.name}", _code(dtype), [None, width])
            for dtype, width in widths.items()
            for kind in kinds
        ]

    inputs = [helper.make_tensor_value_info("places", TensorProto.INT64, places), *infos(takes)]
    graph = helper.make_graph(nodes, "pool", inputs, infos(gives))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


def _code(dtype: np.dtype[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype.newbyteorder("=")))
