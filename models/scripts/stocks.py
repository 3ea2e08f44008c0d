"""Trains the example model `stocks`: a share's log return in the next month, from its monthly prices so far.

    python -m models.scripts.stocks --repository models/repository

Needs the extras `export` and `demo` (torch, vega-datasets); seconds on one core. Seeded.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn

from models.scripts.prices import Prices, shares

SEED: Final = 7
HIDDEN: Final = 8
STEPS: Final = 100
LARGEST_RETURN: Final = 1.0
SMALLEST_PRICE: Final = 1e-6


class Stocks(nn.Module):
    """Prices (batch, time, 1) as they are quoted to the log return of the month after each, (batch, time, 1).

    The return of a month needs the price before it, in the last chunk perhaps: so the last price is kept as a state
    too, in an RNN whose fixed weights make it a register of two prices.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register = nn.RNN(1, 2, nonlinearity="relu", bias=False, batch_first=True).requires_grad_(False)
        self.register.weight_ih_l0.copy_(torch.tensor([[1.0], [0.0]]))
        self.register.weight_hh_l0.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        self.gru = nn.GRU(1, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, prices: Tensor) -> Tensor:
        kept, _ = self.register(prices)
        logs = kept.clamp(min=SMALLEST_PRICE).log()
        past = torch.where(kept[:, :, 1:] > 0, logs[:, :, :1] - logs[:, :, 1:], 0.0)  # none before the first price
        hidden, _ = self.gru(past.clamp(-LARGEST_RETURN, LARGEST_RETURN) / self.scale)
        forecast: Tensor = self.head(hidden) * self.scale
        return forecast


def train(each: list[Prices]) -> Stocks:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    longest = max(len(share.returns) for share in each)
    prices, returns, weights = (np.ones((len(each), longest, 1), np.float32) for _ in range(3))
    for row, share in enumerate(each):
        months = len(share.returns)
        prices[row, :months], returns[row, :months, 0] = share.prices[:-1], share.returns
        weights[row, :, 0] = np.pad(~share.held_out, (0, longest - months))
    x, y, weight = map(torch.from_numpy, (prices, returns, weights))
    model = Stocks(round(float(returns[weights > 0].std()), 3))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=1.0)
    for step in range(1, STEPS + 1):
        loss = ((model(x) - y).abs() * weight).sum() / weight.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 0:
            print(f"step {step:5d}  training error {loss.item():.4f}")
    return model.eval()


def export(model: Stocks, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = {0: "batch", 1: "time"}
    torch.onnx.export(
        model,
        (torch.ones(1, 5, 1),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["prices"],
        output_names=["log_return"],
        dynamic_axes={"prices": axes, "log_return": axes},
    )


def report(path: Path, each: dict[str, Prices]) -> None:
    """Prints the exported file's mean absolute error on held-out months beside persistence and a constant return."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    constant = np.median(np.concatenate([share.returns[~share.held_out] for share in each.values()]))
    errors = []
    for symbol, share in each.items():
        forecast = session.run(["log_return"], {"prices": share.prices[None, :-1]})[0][0, share.held_out, 0]
        truth = share.returns[share.held_out]
        errors.append(np.abs([forecast - truth, truth, constant - truth]))
        print(f"{symbol}: {len(truth)} months, forecast {forecast.min():.3f} to {forecast.max():.3f}")
        print_errors(errors[-1])
    together = np.mean(errors, axis=0)  # shares move together, so a month is one observation
    print("all:")
    print_errors(together)
    for name, gain in (("persistence", together[1] - together[0]), ("the constant", together[2] - together[0])):
        deviation = gain.std() / np.sqrt(len(gain))
        print(f"  better than {name} by {gain.mean():.4f}, standard error {deviation:.4f}")
    print(f"{path}: {path.stat().st_size} bytes")


def print_errors(errors: npt.NDArray[np.float32]) -> None:
    model, persistence, constant = errors.mean(axis=1)
    print(f"  error {model:.4f}, persistence (no change) {persistence:.4f}, constant return {constant:.4f}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repository", type=Path, default=Path(__file__).parents[1] / "repository")
    path = arguments.parse_args().repository / "stocks" / "1" / "model.onnx"
    each = shares()
    export(train(list(each.values())), path)
    report(path, each)


if __name__ == "__main__":
    main()
