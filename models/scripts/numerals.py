"""Trains the example encoder-decoder: Korean number words to digits, 이천이십육 to 2026.

    python models/scripts/numerals.py --repository models/repository

Needs the extra `export` (torch); some two minutes on one core. Seeded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from recurra.models import Model, load

SEED: Final = 11
HIDDEN: Final = 96
LARGEST: Final = 99_999_999
LONGEST: Final = len(str(LARGEST))
HELD_OUT: Final = 77
"""Numbers with these last two digits are never trained on."""
STEPS: Final = 9000
BATCH: Final = 64
SYLLABLES: Final = "영일이삼사오육칠팔구십백천만"
END: Final = 10
"""The token before the first digit, and behind the last one."""


def spoken(number: int) -> str:
    """A number in Sino-Korean, as it is read: 20260 is 이만이백육십."""
    if number == 0:
        return SYLLABLES[0]
    upper, lower = divmod(number, 10_000)
    words = "" if not upper else ("" if upper == 1 else _below_10_000(upper)) + "만"
    return words + _below_10_000(lower)


def _below_10_000(number: int) -> str:
    words = ""
    for unit, name in ((1000, "천"), (100, "백"), (10, "십"), (1, "")):
        digit = number // unit % 10
        if digit:
            words += ("" if digit == 1 and name else SYLLABLES[digit]) + name
    return words


def ids(words: str) -> list[int]:
    return [SYLLABLES.index(syllable) for syllable in words]


class Encoder(nn.Module):
    """Syllables (batch, length) to the state that the decoder starts from, (1, batch, HIDDEN)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(SYLLABLES), 16)
        self.gru = nn.GRU(16, HIDDEN, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * HIDDEN, HIDDEN)

    def forward(self, syllables: Tensor) -> Tensor:
        ends = self.gru(self.embed(syllables))[1]
        state: Tensor = self.bridge(torch.cat([ends[0], ends[1]], dim=1)).tanh()
        return state.unsqueeze(0)


class Decoder(nn.Module):
    """Tokens so far (batch, time) to what comes next, (batch, time, 11): digits, and END."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(END + 1, 16)
        self.gru = nn.GRU(16, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, END + 1)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> Tensor:
        scores: Tensor = self.head(self.gru(self.embed(tokens), state)[0])
        return scores


def draw(rng: np.random.Generator) -> int:
    """A number of any length, all lengths equally likely; those that end in HELD_OUT are never drawn."""
    while True:
        digits = int(rng.integers(1, LONGEST + 1))
        number = int(rng.integers(0 if digits == 1 else 10 ** (digits - 1), 10**digits))
        if number % 100 != HELD_OUT:
            return number


def batches(rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Syllables, tokens and targets of numbers that have as many syllables and as many digits."""
    groups: dict[tuple[int, int], list[int]] = {}
    while True:
        number = draw(rng)
        size = (len(spoken(number)), len(str(number)))
        group = groups.setdefault(size, [])
        group.append(number)
        if len(group) == BATCH:
            del groups[size]
            digits = torch.tensor([[int(digit) for digit in str(each)] for each in group])
            end = torch.full((BATCH, 1), END)
            words = torch.tensor([ids(spoken(each)) for each in group])
            yield words, torch.cat([end, digits], dim=1), torch.cat([digits, end], dim=1)


def train() -> tuple[Encoder, Decoder]:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    encoder, decoder = Encoder(), Decoder()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.Adam(parameters)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=STEPS)
    for step, (words, tokens, targets) in enumerate(islice(batches(rng), STEPS), 1):
        scores = decoder(tokens, encoder(words))
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 250 == 0:
            print(f"step {step:5d}  loss {loss.item():.4f}")
    return encoder.eval(), decoder.eval()


def export(encoder: Encoder, decoder: Decoder, folder: Path) -> None:
    """Two files: the encoder's output is called as the decoder's state, which the server lifts."""
    folder.mkdir(parents=True, exist_ok=True)
    for module, name, source, result, time in (
        (encoder, "start.onnx", "syllables", "gru/h", "length"),
        (decoder, "model.onnx", "tokens", "scores", "time"),
    ):
        axes = {source: {0: "batch", 1: time}, result: {1: "batch"} if result == "gru/h" else {0: "batch", 1: time}}
        example = (torch.zeros(1, 5, dtype=torch.int64),)
        names = {"input_names": [source], "output_names": [result], "dynamic_axes": axes}
        torch.onnx.export(module, example, str(folder / name), dynamo=False, opset_version=17, **names)


def read(model: Model, words: str) -> str:
    """The digits that the model reads, one at a time, as a session would."""
    assert model.start is not None
    states = [model.start.run([np.array([ids(words)])])[0]]
    token, digits = END, ""
    while len(digits) < LONGEST:
        (scores,), states = model.program.run([np.array([[token]])], states)
        token = int(scores[0, 0].argmax())
        if token == END:
            break
        digits += str(token)
    return digits


def report(folder: Path) -> None:
    """Prints how many held-out numbers come out right, and the files' sizes."""
    model, rng = load(folder), np.random.default_rng(SEED + 1)
    numbers = [int(10 ** rng.uniform(2, 8)) // 100 * 100 + HELD_OUT for _ in range(1000)]
    right = sum(read(model, spoken(number)) == str(number) for number in numbers)
    print(f"{right} of {len(numbers)} held-out numbers come out right")
    for path in sorted(folder.glob("1/*.onnx")):
        print(f"{path}: {path.stat().st_size} bytes")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repository", type=Path, default=Path(__file__).parents[1] / "repository")
    folder = arguments.parse_args().repository / "numerals"
    export(*train(), folder / "1")
    report(folder)


if __name__ == "__main__":
    main()
