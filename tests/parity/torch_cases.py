"""PyTorch's recurrent layers and cells, each with the oracle that its state carried from chunk to chunk gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zlib import crc32

import torch
from torch import Tensor, nn

from recurra.models.export.example import parse
from recurra.models.export.torch import export
from tests.parity.case import CHUNKS, RESET_AFTER, ROWS, TIMESTEPS, Case, Oracle
from tests.parity.torch_nets import (
    FEATURES,
    UNITS,
    WORDS,
    Around,
    Bare,
    BareCell,
    ConvLoop,
    ConvStep,
    Explicit,
    Headed,
    Held,
    Last,
    Learned,
    LSTMCellLoop,
    LSTMStep,
    Nested,
    PlainCellLoop,
    PlainStep,
    Scripted,
    State,
    Tagger,
)

X: Final = {"x": f"float32[batch,time,{FEATURES}]"}
STEP: Final = {"x": f"float32[batch,{FEATURES}]"}
SCRIPT: Final = "under torch.jit.script"


@dataclass(frozen=True)
class _Build:
    """Exports what `make` gives, and runs it with its state carried from chunk to chunk.

    Attributes:
        reset: the layer that is reset; empty for all.
        inputs, states: as `export` takes them.
    """

    make: Callable[[], nn.Module]
    reset: str = ""
    inputs: Mapping[str, str] = field(default_factory=lambda: X)
    states: Mapping[str, str] = field(default_factory=dict)
    scripted: bool = False

    def __call__(self, folder: Path) -> Oracle:
        torch.manual_seed(crc32(folder.name.encode()))
        module = self.make().eval()
        for weight in module.parameters():
            nn.init.normal_(weight, std=0.5)  # large enough that a state which is lost shows
        export(torch.jit.script(module) if self.scripted else module, folder, inputs=self.inputs, states=self.states)
        drawn = {name: self._draw(name) for name in self.inputs}
        state: State = {}
        parts, start = [], 0
        with torch.no_grad():
            for index, size in enumerate(CHUNKS):
                if index == RESET_AFTER:
                    state = {layer: value for layer, value in state.items() if self.reset not in ("", layer)}
                chunk = [x[:, start : start + size] if x.shape[1] == TIMESTEPS else x for x in drawn.values()]
                y, state = module.carry(*chunk, state)
                parts.append(y)
                start += size
        timed = [part.shape[1] for part in parts] == list(CHUNKS)
        y = torch.cat(parts, 1) if timed else torch.stack(parts, 1)
        return Oracle({name: x.numpy() for name, x in drawn.items()}, {"y": y.numpy()}, self.reset)

    def _draw(self, name: str) -> Tensor:
        """(ROWS, TIMESTEPS, ...), or (ROWS, ...) of an input that has no time axis beside one that has."""
        (told,) = parse(name, self.inputs[name])
        timed = "time" in told.dims or not any("time" in text for text in self.inputs.values())
        size = [ROWS, *[TIMESTEPS] * timed, *(size for size in told.dims if isinstance(size, int))]
        return torch.randint(0, WORDS, size) if told.dtype.kind == "i" else torch.randn(size)


def _layer(name: str, kind: type[nn.RNNBase], options: str = "", *, batch_first: bool = True) -> Case:
    """A layer of PyTorch under a head; `options` as they are written in Python."""
    given = {"batch_first": batch_first, **eval(f"dict({options})")}
    short = kind.__name__.lower()
    text = ", ".join(filter(None, ["" if batch_first else "time first", options]))
    build = _Build(
        lambda: Headed(short, kind(FEATURES, UNITS, **given)),
        short,
        {"x": f"float32[{'batch,time' if batch_first else 'time,batch'},{FEATURES}]"},
    )
    return _case(name, f"nn.{kind.__name__}{f' ({text})' if text else ''}", build)


def _case(name: str, layer: str, build: _Build) -> Case:
    return Case(f"torch_{name}", layer, "torch", build)


def _states(*names: str, shape: str) -> dict[str, str]:
    return dict.fromkeys(names, f"float32[{shape}]")


def _each_layer() -> Iterator[Case]:
    for short, kind in (("rnn", nn.RNN), ("gru", nn.GRU), ("lstm", nn.LSTM)):
        yield _layer(short, kind)
        yield _layer(f"{short}_time_first", kind, batch_first=False)
        yield _layer(f"{short}_stacked", kind, "num_layers=2")
        yield _layer(f"{short}_bidirectional", kind, "bidirectional=True")
        yield _layer(f"{short}_no_bias", kind, "bias=False")
        yield _layer(f"{short}_deep", kind, "num_layers=2, bidirectional=True, dropout=0.3")
    yield _layer("rnn_relu", nn.RNN, "nonlinearity='relu'")
    yield _layer("lstm_projected", nn.LSTM, "proj_size=2")
    deep = "proj_size=2, num_layers=2, bidirectional=True, bias=False"
    yield _layer("lstm_projected_deep", nn.LSTM, deep, batch_first=False)


def _lstm() -> nn.LSTM:
    return nn.LSTM(FEATURES, UNITS, batch_first=True)


def _each_model() -> Iterator[Case]:
    h_c = _states("h", "c", shape=f"1,batch,{UNITS}")
    pair = f"(float32[1,batch,{UNITS}], float32[1,batch,{UNITS}])"
    yield _case("lstm_last", "nn.LSTM, last output only", _Build(lambda: Last("lstm", _lstm())))
    yield _case("lstm_learned", "nn.LSTM, learned initial state", _Build(Learned, "lstm"))
    yield _case(
        "lstm_states", "nn.LSTM, states as arguments", _Build(lambda: Explicit("lstm", _lstm()), "lstm", X, h_c)
    )
    bare = _Build(lambda: Bare(FEATURES, UNITS, batch_first=True), "lstm_1", {"input": X["x"]}, {"hx": pair})
    yield _case("lstm_bare", "nn.LSTM itself, its states a tuple", bare)
    yield _case("lstm_scripted", f"nn.LSTM {SCRIPT}", _Build(Scripted, "lstm_1", scripted=True))
    yield _case("tagger", "nn.Embedding, nn.GRU", _Build(Tagger, "gru", {"x": "int64[batch,time]"}))
    who = {**X, "who": "float32[batch,2]"}
    yield _case("held", "nn.GRU, a second input that has no time axis", _Build(Held, "gru", who))
    yield _case("nested", "nn.LSTM (proj_size), nn.LayerNorm, nn.GRU in modules", _Build(Nested, "encoder_lstm_1"))


def _each_step() -> Iterator[Case]:
    call = "one timestep a call"
    h_c = _states("h", "c", shape=f"batch,{UNITS}")
    yield _case("lstm_cell", f"nn.LSTMCell, {call}", _Build(LSTMStep, "", STEP, h_c))
    pair = f"(float32[batch,{UNITS}], float32[batch,{UNITS}])"
    bare = _Build(lambda: BareCell(FEATURES, UNITS), "", {"input": STEP["x"]}, {"hx": pair})
    yield _case("lstm_cell_bare", f"nn.LSTMCell itself, {call}", bare)
    for name, kind in (("gru", nn.GRUCell), ("rnn", nn.RNNCell)):
        step = _Build(
            lambda kind=kind: PlainStep(kind(FEATURES, UNITS)),
            "hidden",
            STEP,
            _states("hidden", shape=f"batch,{UNITS}"),
        )
        yield _case(f"{name}_cell", f"nn.{kind.__name__}, {call}", step)
    image = {"x": "float32[batch,1,6,6]"}
    conv = _Build(ConvStep, "", image, _states("h", "c", shape="batch,2,6,6"))
    yield _case("conv_lstm_cell", f"convolutional LSTM cell, {call}", conv)


def _each_loop() -> Iterator[Case]:
    loop = f"in a loop {SCRIPT}"
    lstm = _Build(lambda: LSTMCellLoop(nn.LSTMCell(FEATURES, UNITS)), "cell", scripted=True)
    yield _case("lstm_cell_loop", f"nn.LSTMCell {loop}", lstm)
    for name, kind in (("gru", nn.GRUCell), ("rnn", nn.RNNCell)):
        build = _Build(lambda kind=kind: PlainCellLoop(kind(FEATURES, UNITS)), "cell", scripted=True)
        yield _case(f"{name}_cell_loop", f"nn.{kind.__name__} {loop}", build)
    yield _case("lstm_cell_loop_within", f"nn.LSTMCell {loop}, in a module that is not", _Build(Around, "decoder"))
    video = {"x": "float32[batch,time,1,6,6]"}
    conv = _Build(ConvLoop, "gates", video, scripted=True)
    yield _case("conv_lstm_loop", f"convolutional LSTM cell {loop}", conv)


CASES: Final = (*_each_layer(), *_each_model(), *_each_step(), *_each_loop())
