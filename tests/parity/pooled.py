"""Models on a provider, their states in its memory, against the same models on the CPU with states brought to them.

    python -m tests.parity.pooled [--provider cpu|cuda|tensorrt] [FOLDER ...]

The folders hold model folders; by default the committed cases. And a recurrent net of each kind carries its state over
1,000 timesteps: with 32-bit numbers, and on a GPU with rounded and with 16-bit ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from bench import models as built
from recurra.models import Model, ModelRefused, Pool, PoolProgram, choose, load
from recurra.models.pool import FIRST, FRESH
from recurra.models.provider import ERRORS
from recurra.models.samples import Samples
from recurra.models.selftest import compare
from tests.parity.case import ORACLE, Array

CASES: Final = Path(__file__).with_name("cases")
ROWS: Final = 4  # a bucket: on the CPU a batch of another size may differ in the last bit
TOLERANCES: Final = {"cpu": 1e-6, "fp32": 1e-4, "tf32": 2e-2, "fp16": 5e-2}
LONG: Final = 1_000  # timesteps
_CHUNKS: Final = (3, 1, 2, 5)
_CARRIED: Final = {
    "LSTM 2x256": built.lstm,
    "GRU 2x256": lambda: built.lstm(node="GRU"),
    "RNN 1x256 in a Loop": built.rnn_in_a_loop,
    "ConvLSTM2D 16x16x8": lambda: built.conv_lstm(side=16),
}


class Found(NamedTuple):
    """One comparison: the largest difference, of values above 1 relative to them, and what it may be at most."""

    name: str
    mode: str
    timesteps: int
    error: float
    tolerance: float
    remark: str = ""

    @property
    def good(self) -> bool:
        return self.error <= self.tolerance


def largest_error(reference: Model, model: Model, chunks: Sequence[int], *, ragged: bool = False) -> float:
    """Of all outputs and of all states after each chunk, those of `model` in a pool, by its own provider."""
    rows = min(ROWS, model.max_batch)
    program, plain = (model.ragged, reference.ragged) if ragged else (model.program, reference.program)
    assert program is not None
    assert plain is not None
    pool = Pool(model.signature, model.program.session, FIRST + 4 * rows)
    running, samples = PoolProgram(program, pool, model.max_batch), Samples(model.signature)
    states, worst = Samples(reference.signature).fresh(rows), 0.0
    source, turns = np.full(rows, FRESH), [np.arange(rows) + FIRST + rows * turn for turn in range(3)]
    rng = np.random.default_rng(5)
    for at, size in enumerate(chunks):
        inputs, lengths = samples.inputs(rows, size), rng.integers(1, size + 1, rows) if ragged else None
        whole = [x.astype(spec.dtype) for x, spec in zip(inputs, reference.signature.inputs, strict=True)]
        outputs, states = plain.run(whole, states, lengths)
        target, between = turns[at % 2], turns[2]
        result = running.run(inputs, [source, target, between], lengths)
        assert result.finite.all()
        found = [*_valid(result.outputs, lengths, model), *_tensors(model, pool.read(target))]
        moved = [np.moveaxis(s, spec.batch_axis, 0) for s, spec in zip(states, model.signature.states, strict=True)]
        error, _ = compare(found, [*_valid(outputs, lengths, model), *moved])
        worst, source = max(worst, error), target
    return worst


def _valid(outputs: Sequence[Array], lengths: Array | None, model: Model) -> list[Array]:
    """The outputs without what stands behind a row's end."""
    if lengths is None:
        return list(outputs)
    timed = zip(outputs, model.signature.outputs, strict=True)
    return [row[:n] if spec.has_time_axis else row for o, spec in timed for row, n in zip(o, lengths, strict=True)]


def _tensors(model: Model, rows: Array) -> list[Array]:
    ends = np.cumsum([spec.nbytes for spec in model.signature.states]).tolist()
    return [
        np.ascontiguousarray(rows[:, end - spec.nbytes : end]).view(spec.dtype).reshape(len(rows), *spec.shape)
        for end, spec in zip(ends, model.signature.states, strict=True)
    ]


def case(folder: Path, provider: str) -> Iterator[Found]:
    """A model folder, in chunks of one length and of several."""
    mode = "cpu" if provider == "cpu" else "fp32"
    reference, model = load(folder, provider="cpu"), load(folder, provider=provider)
    sizes = (model.signature.chunk_sizes or _CHUNKS) * 2
    remark = ", ".join(f"{stray.op} on the CPU" for stray in model.strays if not stray.sizes)
    for ragged in (False, True):
        if not ragged or (model.ragged and reference.ragged):
            name = f"{folder.name}, padded" if ragged else folder.name
            error = largest_error(reference, model, sizes, ragged=ragged)
            yield Found(name, mode, sum(sizes), error, TOLERANCES[mode], remark)


def _told(folder: Path, provider: str) -> Iterator[Found]:
    """As case; a model that fails is told, and does not keep the others from being compared."""
    try:
        yield from case(folder, provider)
    except (ModelRefused, *ERRORS) as error:
        yield Found(folder.name, "", 0, float("inf"), 0.0, str(error).strip()[:200])


def carried(provider: str, timesteps: int) -> Iterator[Found]:
    """Nets of each kind, timestep after timestep."""
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, build) in enumerate(_CARRIED.items()):
            made = build()
            for mode in ("cpu",) if provider == "cpu" else ("fp32", "tf32", "fp16"):
                toml = "tf32 = true\n" if mode == "tf32" else ""
                folder = built.repository(Path(scratch) / f"{mode}-{number}", net=made) / "net"
                reference = load(folder, provider="cpu")
                if mode == "fp16":
                    folder = built.repository(Path(scratch) / f"half-{number}", net=built.halved(made)) / "net"
                (folder / "model.toml").write_text(toml)
                try:
                    model = load(folder, provider=provider)
                    error = largest_error(reference, model, [1] * timesteps)
                    yield Found(name, mode, timesteps, error, TOLERANCES[mode])
                except ModelRefused as refusal:
                    yield Found(name, mode, timesteps, float("inf"), TOLERANCES[mode], str(refusal)[:100])


def main() -> int:
    """Exit status 1 if something differs by more than it may."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity.pooled")
    parser.add_argument("--provider", default="cpu", choices=("cpu", "cuda", "tensorrt"))
    parser.add_argument("folders", nargs="*", type=Path, default=[CASES], metavar="FOLDER")
    arguments = parser.parse_args()
    choose(arguments.provider)
    folders = [path.parent for folder in arguments.folders for path in sorted(folder.glob(f"*/{ORACLE}"))]
    found = [each for folder in folders for each in _told(folder, arguments.provider)]
    found += carried(arguments.provider, LONG)
    for each in found:
        verdict = "" if each.good else "  DIFFERS"
        row = f"{each.name:44} {each.mode:5} {each.timesteps:5} {each.error:9.2g} {each.tolerance:9.2g}"
        sys.stdout.write(f"{row}  {each.remark}{verdict}\n")
    bad = sum(not each.good for each in found)
    worst = max((each.error for each in found if each.good), default=0.0)
    sys.stdout.write(f"{len(found)} comparisons on {arguments.provider}, {bad} differ; the largest else: {worst:.2g}\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
