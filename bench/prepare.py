"""What it costs to prepare a model, and what the lift costs a run.

    python -m bench.prepare    (make bench runs it too)

Preparing: seconds on one core for models of some 50 MB, first in a process of their own, then for good. Running: the
lifted model against the file as it came, both by ONNX Runtime alone with the server's settings, interleaved; median
microseconds a run of one thread, and their ratio.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import onnx

from bench import models
from recurra.models import Model, load, quarantine
from recurra.models.samples import Samples
from recurra.models.session import Session

REPEATS = 41
SIZES = ((1, 1), (1, 16), (1, 64), (16, 1), (16, 16), (16, 64))  # timesteps, batch


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    large = {"LSTM 2x1000": models.lstm(hidden=1000), "Loop, RNN 1x3500": models.rnn_in_a_loop(hidden=3500)}
    print(f"{'preparing':<20}     MB   trial s    load s")
    for name, built in large.items():
        with tempfile.TemporaryDirectory() as folder:
            place = models.repository(Path(folder), model=built) / "model"
            trial, ready = _seconds(lambda: quarantine.clear(place)), _seconds(lambda: load(place, provider="cpu"))  # noqa: B023
        print(f"{name:<20} {built.ByteSize() / 1e6:6.0f} {trial:9.1f} {ready:9.1f}")
    small = {"LSTM 2x256": models.lstm(), "Loop, RNN 1x256": models.rnn_in_a_loop()}
    print(f"\n{'running':<20}  timesteps  batch  as it came    lifted  ratio")
    for name, built in small.items():
        with tempfile.TemporaryDirectory() as folder:
            model = load(models.repository(Path(folder), model=built) / "model", provider="cpu")
        for timesteps, batch in SIZES:
            came, lifted = _compared(built, model, timesteps, batch)
            print(f"{name:<20} {timesteps:10} {batch:6} {came:11.1f} {lifted:9.1f} {lifted / came:6.2f}")


def _compared(built: onnx.ModelProto, model: Model, timesteps: int, batch: int) -> tuple[float, float]:
    """Microseconds a run, of the file and of what it was made into."""
    original, samples = Session(built.SerializeToString(), "cpu"), Samples(model.signature)
    inputs, states = samples.inputs(batch, timesteps), samples.fresh(batch)
    fed, _ = model.program.feed(inputs, states)
    outputs = [port.spec.name for port in model.program.layout.outputs]
    fetched = outputs + [port.output for port in model.program.layout.states]
    plain = {name: fed[name] for name in original.inputs}
    figures: tuple[list[float], list[float]] = ([], [])
    count = max(3, 400 // (timesteps * batch))
    for _ in range(REPEATS):
        figures[0].append(_each(lambda: original.run(outputs, plain), count))
        figures[1].append(_each(lambda: model.program.raw(fetched, fed), count))
    return median(figures[0]), median(figures[1])


def _each(run: Callable[[], object], count: int) -> float:
    return _seconds(lambda: [run() for _ in range(count)]) * 1e6 / count


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
