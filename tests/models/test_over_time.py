from pathlib import Path

import graphs
import numpy as np
import onnx
import pytest
import steps
from onnx import ModelProto
from test_lift import chunked

from recurra.models import ModelRefused, load
from recurra.models.over_time import over_time

RANDOM = np.random.default_rng(12)


def stepped(step: ModelProto, states: dict[str, str], feed: dict[str, graphs.Array]) -> list[graphs.Array]:
    """What the step gives when it is called for each timestep: y, then the states."""
    data = next(name for name in feed if name not in states)
    ys, values = [], {name: feed[name] for name in states}
    session = graphs.Session(step.SerializeToString(), "cpu")
    for t in range(feed[data].shape[1]):
        y, *news = session.run(["y", *states.values()], {data: feed[data][:, t], **values})
        values = dict(zip(states, news, strict=True))
        ys.append(y)
    return [np.stack(ys, axis=1), *values.values()]


def pairs(step: ModelProto) -> dict[str, str]:
    return {value.name: f"{value.name}_new" for value in step.graph.input[1:]}


CELLS = {"conv_lstm": steps.conv_lstm(), "stacked": steps.stacked()[0], "projected": steps.projected()}


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_over_time_is_the_step_called_for_each_timestep(cell: str):
    step, states = CELLS[cell], pairs(CELLS[cell])
    built = over_time(step, states)
    onnx.checker.check_model(built, full_check=True)
    feed = {}
    for value in step.graph.input:
        dims = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
        shape = dims if value.name in states else [dims[0], 6, *dims[1:]]
        feed[value.name] = RANDOM.normal(size=shape).astype(np.float32)
    found = graphs.run(built, feed, ["y", *states.values()])
    for ours, theirs in zip(found, stepped(step, states, feed), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_over_time_is_served_in_chunks(tmp_path: Path, cell: str):
    step, states = CELLS[cell], pairs(CELLS[cell])
    model = load(graphs.write(over_time(step, states), tmp_path), provider="cpu")
    assert [state.name for state in model.signature.states] == list(states)
    assert (model.self_test.chunked, model.self_test.batched) == (True, True)
    x = RANDOM.normal(size=(2, 8, *(size or 0 for size in model.signature.inputs[0].shape))).astype(np.float32)
    y, ends = chunked(model, x, (4, 1, 3))
    feed = {name: np.zeros_like(end) for name, end in zip(states, ends, strict=True)}
    for ours, theirs in zip([y, *ends], stepped(step, states, {step.graph.input[0].name: x, **feed}), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_stacked_cell_over_time_is_the_oracles():
    step, (lower, upper) = steps.stacked()
    x = RANDOM.normal(size=(2, 6, 3)).astype(np.float32)
    zeros = {name: np.zeros((2, 4), np.float32) for name in pairs(step)}
    y, _, c, _ = graphs.run(over_time(step, pairs(step)), {"xt": x, **zeros})
    middle, _, cell = graphs.oracle(lower, x, np.zeros((2, 4)))
    np.testing.assert_allclose(y, graphs.oracle(upper, middle, np.zeros((2, 4)))[0], atol=1e-6)
    np.testing.assert_allclose(c, cell, atol=1e-6)


def test_an_input_may_be_held_over_the_chunk():
    step = graphs.scaled_cell(dims=("batch", 1), kind=graphs.FLOAT)
    x, rate = RANDOM.normal(size=(2, 5, 3)).astype(np.float32), np.array([[1], [3]], np.float32)
    h = np.zeros((2, 8), np.float32)
    y, _ = graphs.run(over_time(step, {"h_in": "h_out"}, held=["rate"]), {"x": x, "h_in": h, "rate": rate})
    np.testing.assert_allclose(y, graphs.oracle(graphs.one_step_cell()[1], x * rate[:, None], h)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("states", "held", "message"),
    [
        ({"nope": "h_out"}, [], "no input 'nope'; it has x, h_in"),
        ({"h_in": "nope"}, [], "no output 'nope'; it has y, h_out"),
        ({"h_in": "h_out"}, ["x"], "none is left that has timesteps"),
        ({"h_in": "h_out", "x": "h_out"}, [], "two states of the step have one output"),
    ],
)
def test_a_step_that_cannot_be_run_over_time_is_refused(states: dict[str, str], held: list[str], message: str):
    with pytest.raises(ModelRefused, match=message):
        over_time(graphs.one_step_cell()[0], states, held=held)


def test_a_step_of_an_old_opset_or_without_shapes_is_refused():
    step, _ = graphs.one_step_cell()
    step.opset_import[0].version = 8
    with pytest.raises(ModelRefused, match="opset below 9"):
        over_time(step, {"h_in": "h_out"})
    step, _ = graphs.one_step_cell()
    step.graph.input[0].CopyFrom(graphs.info("x", None))
    with pytest.raises(ModelRefused, match="has no shape; export it with one"):
        over_time(step, {"h_in": "h_out"})
