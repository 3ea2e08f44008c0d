"""Every committed parity case on CUDA: where its nodes run, and what a run copies and waits for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from recurra.models.provider import CPU, CUDA
from tests.parity.pooled import CASES
from tests.rehearsal.calls import Calls, Log
from tests.rehearsal.states import PLACES, Pooled, pooled

LENGTHS: Final = (1, 4, 16)
FOLDERS: Final = [pytest.param(folder, id=folder.name) for folder in sorted(CASES.iterdir())]


@pytest.fixture(scope="module", params=FOLDERS)
def case(request: pytest.FixtureRequest) -> Pooled:
    return pooled(request.param)


def warm(case: Pooled, timesteps: int, log: Log) -> tuple[Calls, int]:
    """What one run of a chunk calls, once it was run before; and the bytes of its outputs."""
    inputs = case.inputs(timesteps)
    case.run(inputs)
    with log.during() as calls:
        result = case.run(inputs)
    return calls, sum(output.nbytes for output in result.outputs)


def lengths(case: Pooled) -> tuple[int, ...]:
    return case.model.signature.chunk_sizes or LENGTHS


def test_no_node_that_computes_is_left_to_the_cpu(case: Pooled):
    assert [stray.op for stray in case.model.strays if not stray.sizes] == []
    assert not case.has_loop  # which copies its condition to the host and waits for it, at every round
    assert case.model.nodes[CUDA] > case.model.nodes.get(CPU, 0)


def test_outputs_and_a_number_a_session_come_to_the_host_however_long_the_chunk(case: Pooled, log: Log):
    for timesteps in lengths(case):
        calls, outputs = warm(case, timesteps, log)
        runs = timesteps if case.model.program.layout.stepwise else 1
        assert sum(calls.copies("DtoH")) == outputs + runs * case.told


def test_no_pool_is_copied_and_no_memory_asked_for(case: Pooled, log: Log):
    smallest = min(int(np.prod(buffer.shape())) * dtype.itemsize for dtype, buffer in case.pool.buffers.items())
    assert smallest >= PLACES
    for timesteps in lengths(case):
        calls, _ = warm(case, timesteps, log)
        assert max(calls.copies()) < smallest
        assert not [line for line in calls.lines if re.match(r"cuda(Malloc|HostAlloc)", line)]


def test_a_longer_chunk_waits_no_oftener(case: Pooled, log: Log):
    if case.model.program.layout.stepwise or len(lengths(case)) == 1:
        pytest.skip("a run for each timestep")
    # With one timestep some axes change places for nothing.
    found = [warm(case, timesteps, log)[0] for timesteps in lengths(case) if timesteps > 1]
    for name in ("cudaStreamSynchronize", "cudaDeviceSynchronize"):
        assert len({calls.count(name) for calls in found}) == 1, name
    assert len({len(calls.copies("DtoH")) for calls in found}) == 1


def test_states_that_are_read_come_in_one_copy_of_each_dtype(case: Pooled, log: Log):
    places = np.arange(2, 2 + case.rows)
    case.pool.read(places)
    before = case.pool.crossed
    calls = log.of(lambda: case.pool.read(places))
    size = case.rows * case.model.signature.state_bytes
    assert case.pool.crossed.to_host - before.to_host == sum(calls.copies("DtoH")) == size
    assert len(calls.copies("DtoH")) == len(case.pool.buffers)


def test_every_case_is_there():
    assert len(FOLDERS) > 60
    assert all(Path(*folder.values).is_dir() for folder in FOLDERS)
