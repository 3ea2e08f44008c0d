"""A model on states in a pool gives what it gives on states that are brought to it, to the last bit on the CPU."""

from collections.abc import Callable
from pathlib import Path

import graphs
import loops
import numpy as np
import onnx
import pytest

from recurra.models import Model, ModelRefused, Pool, PoolProgram, load
from recurra.models.pool import FIRST, FRESH, SCRATCH
from recurra.models.pool_program import _profiles, buckets
from recurra.models.pooled import pooled
from recurra.models.samples import Samples
from recurra.models.session import Bound

Built = onnx.ModelProto
PLACES = 14

FIRST_STATE = "[[states]]\nname = 'h'\ninput = 'h_in'\noutput = 'h_out'\nfresh = 1\n"
VOICE = "[inputs.audio]\ntime_axis = {}\ncontext = 4\nchunk_sizes = [8]\n[inputs.rate]\nconstant = 2\n"
MODELS: dict[str, tuple[Callable[[], Built], str]] = {
    "lstm": (graphs.lstm, ""),
    "layers": (lambda: graphs.lstm(layers=2), ""),
    "time_first": (lambda: graphs.lstm(time_major=True), ""),
    "bidirectional": (lambda: graphs.native("GRU", direction="bidirectional")[0], ""),
    "exposed": (lambda: graphs.gru_exposed()[0], ""),
    "one_timestep": (lambda: graphs.one_step_cell()[0], ""),
    "timestep_of_time": (lambda: graphs.one_step_cell(time_of_one=True)[0], ""),
    "one_session": (lambda: graphs.one_step_cell(batch=None)[0], ""),
    "embedding": (lambda: graphs.embedding_gru()[0], ""),
    "context_along_time": (
        lambda: graphs.moving_sum(taps=3),
        "[inputs.x]\ntime_axis = 1\ncontext = 2\n" + FIRST_STATE,
    ),
    "context_of_a_timestep": (
        lambda: graphs.moving_sum(taps=3, stepwise=True),
        "[inputs.x]\ntime_axis = false\ncontext = 2\n",
    ),
    "voice": (lambda: graphs.voice_detector()[0], VOICE.format("false")),
    "voice_along_time": (lambda: graphs.voice_detector()[0], VOICE.format("1")),
    "constant": (lambda: graphs.scaled_cell(dims=("batch", 1)), "[inputs.rate]\nconstant = 2\n"),
    "loop": (lambda: loops.keras("LSTM")[0], ""),
    "scan": (lambda: loops.scan()[0], ""),
    "lengths": (graphs.lstm_with_lengths, ""),
}


def made(name: str, folder: Path, made_for: str = "") -> Model:
    build, toml = MODELS[name]
    return load(graphs.write(build(), folder, toml=toml), provider="cpu", made_for=made_for)


def rows_of(model: Model, states: list[np.ndarray]) -> np.ndarray:
    """(N, state_bytes) of states in the graph's layout."""
    tensors = [np.moveaxis(s, spec.batch_axis, 0) for s, spec in zip(states, model.signature.states, strict=True)]
    flat = [np.ascontiguousarray(each).reshape(len(each), -1).view(np.uint8) for each in tensors]
    return np.concatenate(flat, axis=1)


@pytest.mark.parametrize("name", MODELS)
def test_a_pool_gives_what_arrays_give(name: str, tmp_path: Path):
    model = made(name, tmp_path)
    count = 4 if model.max_batch > 1 else 1  # a batch that is a bucket: others are filled up, see below
    pool = Pool(model.signature, model.program.session, PLACES)
    program, samples = PoolProgram(model.program, pool, model.max_batch), Samples(model.signature)
    sizes = (model.signature.chunk_sizes or (3, 1, 2)) * 2
    states, place = samples.fresh(count), np.full(count, FRESH)
    free = np.array([7, 3, 9, 5, 2, 8, 4, 6, 10, 11, 13, 12])
    for size in sizes:
        inputs = samples.inputs(count, size)
        outputs, states = model.program.run(inputs, states)
        target, between, free = free[:count], free[count : 2 * count], free[count:]
        result = program.run(inputs, [place, target, between])
        for ours, theirs in zip(result.outputs, outputs, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert result.finite.all()
        np.testing.assert_array_equal(pool.read(target), rows_of(model, states))
        free = np.concatenate((free, between, place[place != FRESH]))
        place = target
    np.testing.assert_array_equal(pool.read(np.array([FRESH])), rows_of(model, samples.fresh(1)))


def test_a_run_leaves_what_it_reads_and_all_other_places_as_they_were(tmp_path: Path):
    model = made("layers", tmp_path)
    pool = Pool(model.signature, model.program.session, PLACES)
    program, samples = PoolProgram(model.program, pool, 8), Samples(model.signature)
    everywhere = np.arange(PLACES)
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(PLACES, model.signature.state_bytes // 4)).astype(np.float32).view(np.uint8)
    pool.write(everywhere[FIRST:], rows[FIRST:])
    before = pool.read(everywhere)
    program.run(samples.inputs(3, 2), [np.array([4, FRESH, 4]), np.array([6, 2, 11])])
    after = pool.read(everywhere)
    changed = set(np.flatnonzero((before != after).any(1)).tolist())
    assert changed == {6, 2, 11, SCRATCH}  # three sessions fill a batch of four


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8])
def test_rows_that_fill_up_a_batch_change_nobodys(tmp_path: Path, count: int):
    model = made("lstm", tmp_path)
    pool = Pool(model.signature, model.program.session, 20)
    program, samples = PoolProgram(model.program, pool, 8), Samples(model.signature)
    inputs = samples.inputs(count, 3)
    outputs, states = model.program.run(inputs, samples.fresh(count))
    places = np.arange(FIRST, FIRST + count)
    result = program.run(inputs, [np.full(count, FRESH), places])
    assert (len(result.outputs[0]), len(result.finite)) == (count, count)
    np.testing.assert_allclose(result.outputs[0], outputs[0], atol=1e-6)
    found, expected = pool.read(places).view(np.float32), rows_of(model, states).view(np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_a_run_gave_stays_when_the_next_one_is_run(tmp_path: Path):
    model = made("lstm", tmp_path)
    pool = Pool(model.signature, model.program.session, PLACES)
    program, samples = PoolProgram(model.program, pool, 8), Samples(model.signature)
    places = [np.full(2, FRESH), np.array([2, 3])]
    first = program.run(samples.inputs(2, 1), places)
    rows = pool.read(places[1])
    kept = first.outputs[0].copy(), rows.copy()
    program.run(samples.inputs(2, 1), places)
    pool.read(places[1])
    np.testing.assert_array_equal(first.outputs[0], kept[0])
    np.testing.assert_array_equal(rows, kept[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_whose_new_state_is_no_number_is_told(tmp_path: Path, bad: float):
    model = made("context_along_time", tmp_path)
    pool = Pool(model.signature, model.program.session, PLACES)
    program, samples = PoolProgram(model.program, pool, 4), Samples(model.signature)
    inputs = samples.inputs(3, 4)
    inputs[0][1, -1] = bad
    result = program.run(inputs, [np.full(3, FRESH), np.array([2, 3, 4])])
    assert result.finite.tolist() == [True, False, True]


def test_states_cross_only_where_they_are_asked_for(tmp_path: Path):
    model = made("layers", tmp_path)
    pool = Pool(model.signature, model.program.session, PLACES)
    program, samples = PoolProgram(model.program, pool, 8), Samples(model.signature)
    size, places = model.signature.state_bytes, [np.full(4, FRESH), np.arange(2, 6)]
    for _ in range(5):
        program.run(samples.inputs(4, 1), places)
    assert (pool.crossed.to_host, pool.crossed.to_device) == (0, 0)
    pool.read(places[1])
    assert (pool.crossed.to_host, pool.crossed.to_device) == (4 * size, 0)
    pool.write(np.array([2, 3]), pool.read(np.array([4, 5])))
    assert (pool.crossed.to_host, pool.crossed.to_device) == (6 * size, 2 * size)


def test_rows_of_several_lengths_share_a_run(tmp_path: Path):
    model = made("loop", tmp_path)
    assert model.ragged is not None
    pool = Pool(model.signature, model.program.session, PLACES)
    program, samples = PoolProgram(model.ragged, pool, 8), Samples(model.signature)
    inputs, lengths = samples.inputs(4, 5), np.array([5, 2, 4, 1])
    outputs, states = model.ragged.run(inputs, samples.fresh(4), lengths)
    result = program.run(inputs, [np.full(4, FRESH), np.arange(2, 6)], lengths)
    np.testing.assert_array_equal(result.outputs[0], outputs[0])
    np.testing.assert_array_equal(pool.read(np.arange(2, 6)), rows_of(model, states))


def test_buckets_are_powers_of_two_up_to_the_largest_batch():
    assert buckets(1) == (1,)
    assert buckets(8) == (1, 2, 4, 8)
    assert buckets(100) == (1, 2, 4, 8, 16, 32, 64, 100)


def test_a_graph_of_an_old_opset_is_refused(tmp_path: Path):
    model = made("lstm", tmp_path)
    graph = onnx.load_model_from_string(model.program.session.model)
    graph.opset_import[0].version = 10
    with pytest.raises(ModelRefused, match="states in a pool need opset 11, and the file has 10"):
        pooled(graph, model.program.layout)


@pytest.mark.parametrize("name", ["layers", "scan", "loop"])
def test_a_recorded_timestep_gives_what_one_that_is_run_gives(name: str, tmp_path: Path):
    """On the CPU nothing is recorded, but the form of the graph is the one for that, bound and told as on a GPU."""
    model = made(name, tmp_path, made_for="cuda")
    pool = Pool(model.signature, model.program.session, PLACES)
    plain, recorded = PoolProgram(model.program, pool, 4), PoolProgram(model.program, pool, 4)
    before = pool.read(np.array([FRESH]))
    assert recorded.record() == ""
    assert len(recorded._recorded) == 3
    np.testing.assert_array_equal(pool.read(np.array([FRESH])), before)
    samples, turns = Samples(model.signature), np.arange(2, 14).reshape(4, 3)
    for at in range(6):
        inputs = samples.inputs(3, 1 if at != 3 else 2)
        froms = [np.full(3, FRESH)] * 2 if not at else [turns[(at - 1) % 2], turns[2 + (at - 1) % 2]]
        one = plain.run(inputs, [froms[0], turns[at % 2]])
        other = recorded.run(inputs, [froms[1], turns[2 + at % 2]])
        np.testing.assert_array_equal(other.outputs[0], one.outputs[0])
        np.testing.assert_array_equal(pool.read(turns[2 + at % 2]), pool.read(turns[at % 2]))
    assert recorded._bound  # what has two timesteps


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("loop", "it has a Loop"),
        ("constant", "'rate' is fed at every call"),
        ("lengths", "'lengths' is fed at every call"),
    ],
)
def test_what_cannot_be_recorded_says_why(name: str, why: str, tmp_path: Path):
    model = made(name, tmp_path)
    pool = Pool(model.signature, model.program.session, PLACES)
    assert PoolProgram(model.program, pool, 4).record() == why


def test_tensorrt_is_told_the_sizes_that_come(tmp_path: Path):
    model = made("time_first", tmp_path)
    pool = Pool(model.signature, model.program.session, PLACES)
    program = PoolProgram(model.program, pool, 8)
    told = _profiles(model.program, program._form, pool, 8)
    assert told["trt_profile_min_shapes"] == "recurra_places:1x2,recurra_pool_float32:14x16,x:1x1x3"
    assert told["trt_profile_opt_shapes"] == "recurra_places:8x2,recurra_pool_float32:14x16,x:1x8x3"
    assert told["trt_profile_max_shapes"] == "recurra_places:8x2,recurra_pool_float32:14x16,x:32x8x3"
    names = set(program._session.inputs)
    assert all({each.split(":")[0] for each in value.split(",")} == names for value in told.values())


def test_what_the_runtime_does_not_record_is_run_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = made("lstm", tmp_path)
    pool = Pool(model.signature, model.program.session, PLACES)
    program = PoolProgram(model.program, pool, 4)
    run = Bound.run

    def unable(bound: Bound) -> list[np.ndarray]:
        if bound._options is not None:
            raise RuntimeError("no such kernel in a graph")
        return run(bound)

    monkeypatch.setattr(Bound, "run", unable)
    assert program.record() == "the runtime does not record it: no such kernel in a graph"
    inputs = Samples(model.signature).inputs(2, 1)
    outputs, _ = model.program.run(inputs, Samples(model.signature).fresh(2))
    result = program.run(inputs, [np.full(2, FRESH), np.array([2, 3])])
    np.testing.assert_array_equal(result.outputs[0], outputs[0])


def test_what_is_played_otherwise_than_it_is_run_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = made("lstm", tmp_path)
    pool = Pool(model.signature, model.program.session, PLACES)
    program = PoolProgram(model.program, pool, 4)
    run = Bound.run

    def forgetful(bound: Bound) -> list[np.ndarray]:
        told = run(bound)
        return told if bound._options is None else [array + 0.5 for array in told]

    monkeypatch.setattr(Bound, "run", forgetful)
    assert program.record() == "a timestep that is played differs from one that is run"
    assert not program._recorded
