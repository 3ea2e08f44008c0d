"""Trains the example model `hangul`: the next jamo of Korean text, from the jamo before it.

    python -m models.scripts.hangul --repository models/repository

Needs the extra `export` (torch); a minute on one core. Seeded.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.scripts.jamo import VOCABULARY, Ids, corpus, encode

SEED: Final = 7
EMBEDDING: Final = 32
HIDDEN: Final = 96
DROPOUT: Final = 0.3
STEPS: Final = 900
WINDOWS_PER_STEP: Final = 32
WINDOW_JAMO: Final = 128
PRIOR: Final = 5.0
"""How many unigram observations the bigram baseline adds to what it has counted after each jamo."""


class Hangul(nn.Module):
    """A GRU over jamo: ids (batch, time) to the logits of the next id, (batch, time, 73)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), EMBEDDING)
        self.gru = nn.GRU(EMBEDDING, HIDDEN, batch_first=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(HIDDEN, len(VOCABULARY))

    def forward(self, ids: Tensor) -> Tensor:
        hidden, _ = self.gru(self.dropout(self.embedding(ids)))
        logits: Tensor = self.head(self.dropout(hidden))
        return logits


def windows(lines: list[Ids], rng: np.random.Generator) -> Tensor:
    """Lines in random order, from an end of line on, (windows, jamo + 1)."""
    rows = []
    for _ in range(WINDOWS_PER_STEP):
        text = np.concatenate([[0], *(lines[each] for each in rng.choice(len(lines), 16, replace=False))])
        rows.append(text[: WINDOW_JAMO + 1])
    return torch.from_numpy(np.stack(rows))


def train(lines: list[Ids]) -> Hangul:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    model = Hangul()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 8e-3, total_steps=STEPS)
    for step in range(1, STEPS + 1):
        text = windows(lines, rng)
        loss = functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step:5d}  training {loss.item() / math.log(2):.3f} bits a jamo")
    return model.eval()


def export(model: Hangul, folder: Path) -> None:
    path = folder / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = {0: "batch", 1: "time"}
    torch.onnx.export(
        model,
        (torch.zeros(1, 5, dtype=torch.int64),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["ids"],
        output_names=["logits"],
        dynamic_axes={"ids": axes, "logits": axes},
    )
    (folder / "vocabulary.json").write_text(json.dumps(VOCABULARY, ensure_ascii=False) + "\n", "utf-8")


def unigram(learned: Ids) -> npt.NDArray[np.float64]:
    """How likely each id is anywhere, (73,)."""
    counts = np.bincount(learned, minlength=len(VOCABULARY)) + 0.5
    return counts / counts.sum()


def bigram(learned: Ids) -> npt.NDArray[np.float64]:
    """How likely each id is after each, (73, 73)."""
    counts = PRIOR * np.tile(unigram(learned), (len(VOCABULARY), 1))
    np.add.at(counts, (learned[:-1], learned[1:]), 1)
    return counts / counts.sum(axis=1, keepdims=True)


def report(path: Path, learned: Ids, held_out: Ids) -> None:
    """Prints bits a jamo and how often the likeliest next jamo is right, on text that was held out."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    before, after = held_out[:-1], held_out[1:]
    logits = session.run(["logits"], {"ids": before[None]})[0][0].astype(np.float64)
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    for name, likely in {
        "hangul": softmax / softmax.sum(axis=1, keepdims=True),
        "bigram": bigram(learned)[before],
        "unigram": np.tile(unigram(learned), (len(after), 1)),
    }.items():
        bits = -np.log2(likely[np.arange(len(after)), after]).mean()
        print(f"{name}: {len(after)} jamo, {bits:.2f} bits a jamo, {(likely.argmax(axis=1) == after).mean():.0%} right")
    print(f"{path}: {path.stat().st_size} bytes")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repository", type=Path, default=Path(__file__).parents[1] / "repository")
    folder = arguments.parse_args().repository / "hangul"
    lines = corpus()
    export(train([encode(line) for line in lines.learned]), folder)
    learned, held_out = (encode("\n" + "".join(part)) for part in lines)
    report(folder / "1" / "model.onnx", learned, held_out)


if __name__ == "__main__":
    main()
