"""Trains the example model: the next hour's temperature of a city, from the hours before it.

    python models/scripts/forecaster.py --repository models/repository

Needs the extras `export` and `demo` (torch, vega-datasets); a minute on one core. Seeded.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn
from vega_datasets import local_data

SEED: Final = 7
HIDDEN: Final = 32
WINDOW_HOURS: Final = 240
WARM_UP_HOURS: Final = 24
STEPS: Final = 1500
WINDOWS_PER_STEP: Final = 32
FIRST_HELD_OUT_DAY: Final = 25
"""Every month's days from this one on are never trained on."""


class Year(NamedTuple):
    """A city's readings, (hours, 3): °C, hour of the day, day of the year; and which hours are held out, (hours,)."""

    readings: npt.NDArray[np.float32]
    held_out: npt.NDArray[np.bool_]


def year(city: str) -> Year:
    table = local_data(city).sort_values("date")
    date = table["date"].dt
    columns = [(table["temp"] - 32.0) / 1.8, date.hour, date.day_of_year]
    return Year(np.stack(columns, axis=1).astype(np.float32), (date.day >= FIRST_HELD_OUT_DAY).to_numpy())


class Forecaster(nn.Module):
    """Two LSTMs that forecast the change from this hour's temperature to the next hour's.

    Takes readings (batch, time, 3) as they are measured and gives °C, (batch, time, 1): scaling is part of the graph.
    """

    def __init__(self, mean: float, scale: float, change: float) -> None:
        super().__init__()
        self.mean, self.scale, self.change = mean, scale, change
        self.lstm_1 = nn.LSTM(5, HIDDEN, batch_first=True)
        self.lstm_2 = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        celsius, hour, day = x[:, :, 0:1], x[:, :, 1:2] * (2 * math.pi / 24), x[:, :, 2:3] * (2 * math.pi / 365)
        features = torch.cat([(celsius - self.mean) / self.scale, hour.sin(), hour.cos(), day.sin(), day.cos()], dim=2)
        hidden, _ = self.lstm_2(self.lstm_1(features)[0])
        forecast: Tensor = celsius + self.head(hidden) * self.change
        return forecast


def windows(years: list[Year], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Readings (n, hours, 3), the next hour's °C (n, hours, 1), and each forecast's weight (n, hours, 1)."""
    inputs, targets, weights = [], [], []
    for _ in range(WINDOWS_PER_STEP):
        x, held_out = years[rng.integers(len(years))]
        start = int(rng.integers(len(x) - WINDOW_HOURS - 1))
        here, following = slice(start, start + WINDOW_HOURS), slice(start + 1, start + WINDOW_HOURS + 1)
        inputs.append(x[here])
        targets.append(x[following, :1])
        weights.append(~(held_out[here] | held_out[following])[:, None])
    # The weights stop at the first held-out hour, so that nothing is learned from its temperature as an input either.
    weight = np.cumprod(np.stack(weights), axis=1).astype(np.float32)
    weight[:, :WARM_UP_HOURS] *= 0.2
    return torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets)), torch.from_numpy(weight)


def train(years: list[Year]) -> Forecaster:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    seen = np.concatenate([x[~held_out, 0] for x, held_out in years])
    change = np.concatenate([np.diff(x[:, 0])[~(held_out[1:] | held_out[:-1])] for x, held_out in years])
    model = Forecaster(round(float(seen.mean()), 3), round(float(seen.std()), 3), round(float(change.std()), 3))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=STEPS)
    for step in range(1, STEPS + 1):
        x, y, weight = windows(years, rng)
        loss = ((model(x) - y).abs() * weight).sum() / weight.sum()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step:5d}  training error {loss.item():.4f} °C")
    return model.eval()


def export(model: Forecaster, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = {0: "batch", 1: "time"}
    torch.onnx.export(
        model,
        (torch.zeros(1, 5, 3),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["readings"],
        output_names=["forecast"],
        dynamic_axes={"readings": axes, "forecast": axes},
    )


def report(path: Path, years: dict[str, Year]) -> None:
    """Prints the exported file's mean absolute error on held-out hours beside persistence (no change)."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for city, (x, held_out) in years.items():
        forecast = session.run(["forecast"], {"readings": x[None, :-1]})[0][0, :, 0]
        truth, judged = x[1:, 0], held_out[1:]
        model_error = np.abs(forecast - truth)[judged].mean()
        persistence_error = np.abs(x[:-1, 0] - truth)[judged].mean()
        print(f"{city}: {judged.sum()} hours, error {model_error:.3f} °C, persistence {persistence_error:.3f} °C")
    print(f"{path}: {path.stat().st_size} bytes")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repository", type=Path, default=Path(__file__).parents[1] / "repository")
    path = arguments.parse_args().repository / "forecaster" / "1" / "model.onnx"
    years = {city: year(city) for city in ("seattle-temps", "sf-temps")}
    export(train(list(years.values())), path)
    report(path, years)


if __name__ == "__main__":
    main()
