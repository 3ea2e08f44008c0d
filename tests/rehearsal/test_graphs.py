"""Timesteps that are recorded as CUDA graphs, and played."""

from __future__ import annotations

from typing import Final

import pytest

from bench import models
from bench.gpu.cases import QUICK
from recurra.models.pool import FRESH, SCRATCH
from tests.parity.pooled import CASES
from tests.rehearsal.calls import Calls, Log
from tests.rehearsal.states import Pooled, pooled

RECORDED: Final = ("keras_lstm", "keras_gru", "keras_cell_lstm", "torch_lstm_bare", "torch_gru_cell", *QUICK)
# What may not be called while a stream is captured: it would end the recording.
FORBIDDEN: Final = ("cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaStreamSynchronize", "cudaDeviceSynchronize")


@pytest.fixture(scope="module", params=RECORDED)
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, log: Log
) -> tuple[Pooled, Calls]:
    """One that plays what it has recorded, and what the recording called."""
    folder = CASES / request.param
    if request.param in QUICK:
        repository = models.repository(tmp_path_factory.mktemp("models"), net=QUICK[request.param].build())
        folder = repository / "net"
    found = pooled(folder)
    with log.during() as calls:
        assert found.program.record() == ""
    return found, calls


def test_a_timestep_is_one_launch_of_a_graph_and_none_of_a_kernel(recorded: tuple[Pooled, Calls], log: Log):
    case, _ = recorded
    inputs = case.inputs(1)
    for _ in range(2):
        calls = log.of(lambda: case.run(inputs))
        assert calls.count("cudaGraphLaunch") == 1
        assert [calls.count(each) for each in ("launch", "cublas", "cudnn", "cudaStreamBeginCapture")] == [0] * 4


def test_what_crosses_is_what_crosses_without(recorded: tuple[Pooled, Calls], log: Log):
    case, _ = recorded
    inputs = case.inputs(1)
    with log.during() as calls:
        result = case.run(inputs)
    outputs = sum(output.nbytes for output in result.outputs)
    assert sum(calls.copies("DtoH")) == outputs + case.told
    places = 16 * case.rows
    assert sum(calls.copies("HtoD")) == places + sum(array.nbytes for array in inputs)


def test_a_recording_runs_on_nobodys_places():
    case = pooled(CASES / RECORDED[0])
    assert case.program.record() == ""
    fed = [places for places, _ in case.program._recorded.values()]
    assert fed
    assert all(set(places[:, 0]) <= {FRESH, SCRATCH} and set(places[:, 1]) == {SCRATCH} for places in fed)


def test_each_recording_is_begun_ended_made_and_launched(recorded: tuple[Pooled, Calls]):
    case, calls = recorded
    told = ("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch")
    order = [line for line in calls.lines if line in told]
    assert order[: len(told)] == [*told]
    assert order.count("cudaGraphInstantiate") == len(case.program._recorded)


def captured(calls: Calls) -> Calls:
    """Those that are recorded."""
    within, found = False, Calls()
    for line in calls.lines:
        within = (within or line == "cudaStreamBeginCapture") and line != "cudaStreamEndCapture"
        if within:
            found.lines.append(line)
    return found


def test_nothing_that_would_end_a_recording_is_called_in_it(recorded: tuple[Pooled, Calls]):
    _, calls = recorded
    found = captured(calls)
    assert found.count("launch") > 0
    assert [line for line in found.lines if line.startswith(FORBIDDEN)] == []


def test_nothing_comes_to_the_host_in_a_recording(recorded: tuple[Pooled, Calls]):
    assert captured(recorded[1]).copies("DtoH") == []


def test_what_a_recording_read_from_the_host_is_still_there_when_it_is_played(recorded: tuple[Pooled, Calls], log: Log):
    """Such as the lengths that a native node's kernel copies: a played copy reads their memory again."""
    case, _ = recorded
    if not case.model.signature.chunk_sizes:
        case.run(case.inputs(5))  # plain
    for rows in (1, 2, 4):
        inputs = case.inputs(1, rows)
        calls = log.of(lambda inputs=inputs: case.run(inputs))
        assert (calls.count("cudaGraphLaunch"), calls.count("stale")) == (1, 0)


def test_what_cannot_be_recorded_says_so():
    case = pooled(CASES / "keras_several_inputs_and_outputs")
    assert "of its nodes run on the CPU" in case.program.record()
