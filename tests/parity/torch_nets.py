"""Small recurrent models in PyTorch, in the forms that its users write them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

import torch
from torch import Tensor, nn

State = dict[str, tuple[Tensor, ...]]  # by layer, as Recurra names it; a layer that is missing is fresh

FEATURES: Final = 3
UNITS: Final = 5
WORDS: Final = 11


class Net(nn.Module, ABC):
    """A model twice: `forward` is exported; `carry` gets its state and gives it back, and is the oracle."""

    def forward(self, x: Tensor) -> Tensor:
        return self.carry(x, {})[0]

    @abstractmethod
    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The outputs, and the states after them."""


def stack(rnn: nn.RNNBase, name: str, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Runs a layer of PyTorch from the states of its nodes: name, name_1, ..."""
    names = [name, *(f"{name}_{number}" for number in range(1, rnn.num_layers))]
    directions, rows = 1 + rnn.bidirectional, x.shape[0 if rnn.batch_first else 1]
    sizes = [rnn.proj_size or rnn.hidden_size, *([rnn.hidden_size] if rnn.mode == "LSTM" else [])]
    fresh = tuple(torch.zeros(directions, rows, size) for size in sizes)
    start = [torch.cat(each) for each in zip(*(state.get(each, fresh) for each in names), strict=True)]
    y, end = rnn(x, tuple(start) if rnn.mode == "LSTM" else start[0])
    ends = [each.split(directions) for each in (end if rnn.mode == "LSTM" else [end])]
    return y, dict(zip(names, zip(*ends, strict=True), strict=True))


class Headed(Net):
    """A layer under a linear head."""

    def __init__(self, name: str, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, rnn)
        width = (rnn.proj_size or rnn.hidden_size) * (1 + rnn.bidirectional)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(getattr(self, self.name)(x)[0])

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        rnn = getattr(self, self.name)
        y, state = stack(rnn, self.name, x if rnn.batch_first else x.transpose(0, 1), state)
        return self.head(y if rnn.batch_first else y.transpose(0, 1)), state


class Last(Headed):
    """The last timestep alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, -1]

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = super().carry(x, state)
        return y[:, -1], state


class Explicit(Headed):
    """States in and out of forward."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(x, (h, c))
        return self.head(y), h, c


class Bare(nn.LSTM):
    """nn.LSTM itself, which takes its states as a tuple."""

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return stack(self, "lstm_1", x, state)


class BareCell(nn.LSTMCell):
    """nn.LSTMCell itself: it gives its states and no more."""

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        fresh = torch.zeros(len(x), UNITS)
        ys, h, c = [], *state.get("", (fresh, fresh))
        for t in range(x.shape[1]):
            h, c = self(x[:, t], (h, c))
            ys.append(h)
        return torch.stack(ys, 1), {"": (h, c)}


class Tagger(Net):
    """Tokens through a table into a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gru, self.head = (
            nn.Embedding(WORDS, 4),
            nn.GRU(4, UNITS, batch_first=True),
            nn.Linear(UNITS, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.table(x))[0])

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = stack(self.gru, "gru", self.table(x), state)
        return self.head(y), state


class Held(Net):
    """What is known of a session, beside what comes at each timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES + 2, UNITS, batch_first=True)

    def forward(self, x: Tensor, who: Tensor) -> Tensor:
        return self.carry(x, who, {})[0]

    def carry(self, x: Tensor, who: Tensor, state: State) -> tuple[Tensor, State]:
        spread = who.unsqueeze(1).expand(-1, x.shape[1], -1)
        return stack(self.gru, "gru", torch.cat([x, spread], -1), state)


class Learned(Net):
    """An LSTM that starts from a state that was learned."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, UNITS, batch_first=True)
        self.h0, self.c0 = (nn.Parameter(torch.randn(1, 1, UNITS)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        start = self.h0.expand(-1, x.shape[0], -1), self.c0.expand(-1, x.shape[0], -1)
        return self.lstm(x, tuple(each.contiguous() for each in start))[0]

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        fresh = tuple(each.expand(-1, len(x), -1).contiguous() for each in (self.h0, self.c0))
        return stack(self.lstm, "lstm", x, {"lstm": fresh, **state})


class Encoder(nn.Module):
    """A module of a module, with a projected LSTM of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, 6, proj_size=4, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Nested(Net):
    """Layers of several kinds, one deeper than the other."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.gru = Encoder(), nn.GRU(4, UNITS, batch_first=True)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(UNITS + FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(self.norm(self.encoder(x)))
        return self.head(torch.cat([y, x], -1))

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, first = stack(self.encoder.lstm, "encoder_lstm", x, state)
        y, second = stack(self.gru, "gru", self.norm(y), state)
        return self.head(torch.cat([y, x], -1)), first | second


class CellLoop(Net):
    """A loop over one cell, to be compiled by torch.jit.script."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell


class LSTMCellLoop(CellLoop):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 5)
        c = torch.zeros(x.size(0), 5)
        ys = []
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t], (h, c))
            ys.append(h)
        return torch.stack(ys, 1)

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = BareCell.carry(self.cell, x, {"": state["cell"]} if state else {})
        return y, {"cell": state[""]}


class PlainCellLoop(CellLoop):
    """Of a cell that has one state."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 5)
        ys = []
        for t in range(x.size(1)):
            h = self.cell(x[:, t], h)
            ys.append(h)
        return torch.stack(ys, 1)

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        ys, (h,) = [], state.get("cell", (torch.zeros(len(x), UNITS),))
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            ys.append(h)
        return torch.stack(ys, 1), {"cell": (h,)}


class ConvLoop(Net):
    """A loop over a convolutional LSTM cell, by hand: x (N, T, 1, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv2d(1 + 2, 4 * 2, 3, padding=1)

    def cell(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 2, 6, 6)
        c = torch.zeros(x.size(0), 2, 6, 6)
        ys = []
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t], h, c)
            ys.append(h)
        return torch.stack(ys, 1)

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        fresh = torch.zeros(len(x), 2, 6, 6)
        ys, h, c = [], *state.get("gates", (fresh, fresh))
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], h, c)
            ys.append(h)
        return torch.stack(ys, 1), {"gates": (h, c)}


class ConvStep(ConvLoop):
    """One timestep of it a call."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.cell(x, h, c)
        return h, h, c


class Scripted(Net):
    """A layer in a module to be compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, UNITS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        return y

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return stack(self.lstm, "lstm_1", x, state)


class Around(Net):
    """A compiled loop in a module that is not compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = LSTMCellLoop(nn.LSTMCell(FEATURES, UNITS))
        self.decoder, self.head = torch.jit.script(self.inner), nn.Linear(UNITS, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(x))

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.inner.carry(x, {"cell": state["decoder"]} if state else {})
        return self.head(y), {"decoder": state["cell"]}


class LSTMStep(Net):
    """One timestep a call, states in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(FEATURES, UNITS), nn.Linear(UNITS, 2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.cell(x, (h, c))
        return self.head(h), h, c

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = BareCell.carry(self.cell, x, state)
        return self.head(y), state


class PlainStep(CellLoop):
    """One timestep a call of a cell that has one state."""

    def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.cell(x, hidden)
        return torch.tanh(hidden), hidden

    def carry(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = PlainCellLoop.carry(self, x, {"cell": state["hidden"]} if state else {})
        return torch.tanh(y), {"hidden": state["cell"]}
