"""The example models: what the server makes of their files, and what their READMEs say of them."""

import json
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from vega_datasets import local_data

from models.scripts import jamo, prices, rain
from recurra.models.repository import Model, find, load
from recurra.models.samples import Samples

FOLDERS = find(Path(__file__).parents[2] / "models" / "repository")


def readings() -> np.ndarray:
    """A week of Seattle's, (1, 168, 3): °C, hour of the day, day of the year."""
    table = local_data("seattle-temps").sort_values("date")[:168]
    date = table["date"].dt
    return np.stack([(table["temp"] - 32.0) / 1.8, date.hour, date.day_of_year], axis=1).astype(np.float32)[None]


INPUTS = {
    "forecaster": readings,
    "hangul": lambda: jamo.encode("\n" + "".join(jamo.corpus().held_out))[None, :-1],
    "numerals": lambda: np.array([[10, 8, 7, 6, 5, 4, 3, 2, 1]]),
    "nowcaster": lambda: rain.held_out()[:, :-1],
    "stocks": lambda: prices.shares()["AAPL"].prices[None, :-1],
}


@cache
def served(name: str) -> Model:
    return load(FOLDERS[name], provider="cpu")


def streamed(name: str, x: np.ndarray, chunk: int) -> np.ndarray:
    """The outputs over all of `x`, (batch, time, ...), given in chunks of `chunk` timesteps."""
    model, parts = served(name), []
    states = Samples(model.signature).fresh(len(x))
    for start in range(0, x.shape[1], chunk):
        (output,), states = model.program.run([x[:, start : start + chunk]], states)
        parts.append(output)
    return np.concatenate(parts, axis=1)


def test_every_example_is_known_here():
    assert set(FOLDERS) == set(INPUTS)


@pytest.mark.parametrize("name", INPUTS)
def test_an_example_is_served_without_limits(name):
    assert served(name).self_test.chunked
    assert served(name).self_test.batched
    assert (FOLDERS[name] / "1" / "model.onnx").stat().st_size < 200_000


@pytest.mark.parametrize("name", INPUTS)
def test_chunks_of_an_example_are_one_run_of_its_file(name):
    x = INPUTS[name]()[:2]
    session = onnxruntime.InferenceSession(FOLDERS[name] / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    fed = {session.get_inputs()[0].name: x}
    for port in served(name).program.layout.states:  # a file may take its states itself
        fed[port.input] = np.stack([port.spec.fresh] * len(x), axis=port.spec.batch_axis)
    taken = {value.name for value in session.get_inputs()}
    whole, *_ = session.run(None, {key: array for key, array in fed.items() if key in taken})
    for chunk in (1, 7):
        np.testing.assert_allclose(streamed(name, x, chunk), whole, rtol=1e-5, atol=1e-5)


def test_the_vocabulary_of_hangul_is_beside_it():
    assert json.loads((FOLDERS["hangul"] / "vocabulary.json").read_text("utf-8")) == list(jamo.VOCABULARY)


def test_text_is_the_same_after_jamo():
    text = "".join(line for part in jamo.corpus() for line in part)
    assert jamo.decode(jamo.encode(text)) == text


def test_hangul_knows_the_next_jamo_more_often_than_the_jamo_before_tells():
    learned, held_out = (jamo.encode("\n" + "".join(part)) for part in jamo.corpus())
    pairs = Counter(pairwise(learned))
    likeliest = {first: second for (first, second), _ in reversed(pairs.most_common())}
    before, after = held_out[:-1], held_out[1:]
    bigram = np.mean([likeliest.get(each) for each in before] == after)
    hangul = np.mean(streamed("hangul", before[None], 64)[0].argmax(axis=1) == after)
    assert hangul > bigram + 0.1


def test_stocks_is_no_worse_than_no_change_on_held_out_months_and_forecasts_little():
    errors, unchanged = [], []
    for share in prices.shares().values():
        forecast = streamed("stocks", share.prices[None, :-1], 12)[0, share.held_out, 0]
        truth = share.returns[share.held_out]
        errors.extend(np.abs(forecast - truth))
        unchanged.extend(np.abs(truth))
        assert np.abs(forecast).max() < 0.02
    assert np.mean(errors) < np.mean(unchanged)


def test_stocks_forecasts_the_same_return_in_any_currency():
    dollars = INPUTS["stocks"]()
    np.testing.assert_allclose(streamed("stocks", dollars * 1300, 1), streamed("stocks", dollars, 1), atol=1e-5)


def test_nowcaster_beats_no_change_by_what_it_has_seen_before():
    frames = rain.held_out()
    before, after = frames[:, :-1], frames[:, 1:]
    forecast, unchanged = (
        np.abs(each - after).mean(axis=(0, 2, 3, 4)) for each in (streamed("nowcaster", before, 1), before)
    )
    assert forecast.mean() < unchanged.mean() / 3
    assert (forecast[5:] < forecast[0] / 3).all()  # one frame does not tell the wind
