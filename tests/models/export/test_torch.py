import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from recurra.models import ModelRefused, load  # noqa: E402
from recurra.models.export.cli import export as command  # noqa: E402
from recurra.models.export.torch import export  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

X = {"x": "float32[batch,time,3]"}


class Net(nn.Module):
    """A layer, of which only the outputs are given."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Unrolled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x):
        h = c = torch.zeros(x.shape[0], 4)
        ys = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            ys.append(h)
        return torch.stack(ys, 1)


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x, mine):
        mine = self.cell(x, mine)
        return mine.tanh(), mine


class Backwards(Step):
    """The state comes first."""

    def forward(self, x, mine):
        mine = self.cell(x, mine)
        return mine, mine[:, :1]


class ZeroStart(nn.Module):
    """A projected LSTM that is given zeros, as many write it."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.lstm, self.start = nn.LSTM(3, 6, proj_size=2, num_layers=2, batch_first=True), start

    def forward(self, x):
        h, c = torch.full((2, x.shape[0], 2), self.start), torch.zeros(2, x.shape[0], 6)
        return self.lstm(x, (h, c))[0]


def test_the_folder_is_served_and_the_module_stays_as_it_was(tmp_path: Path):
    module = Net(nn.LSTM(3, 4, batch_first=True, proj_size=2, dropout=0.5, num_layers=2)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = export(module, tmp_path / "net", inputs=X)
    assert model.layout == load(tmp_path / "net", provider="cpu").layout
    assert [state.name for state in model.signature.states] == ["layer/h", "layer/c", "layer_1/h", "layer_1/c"]
    assert [spec.name for spec in (*model.signature.inputs, *model.signature.outputs)] == ["x", "y"]
    assert module.training
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.layer.proj_size == 2
    assert "forward" not in vars(module.layer)
    assert "the PyTorch module Net" in (tmp_path / "net" / "README.md").read_text()


def test_a_projected_lstm_may_be_given_zeros_but_no_other_state(tmp_path: Path):
    model = export(ZeroStart(), tmp_path / "zeros", inputs=X)
    assert [state.shape for state in model.signature.states] == [(1, 6)] * 4
    with pytest.raises(ModelRefused, match="proj_size is given a hidden state"):
        export(ZeroStart(0.5), tmp_path / "halves", inputs=X)


def test_a_loop_in_python_is_refused_with_the_remedy(tmp_path: Path):
    with pytest.raises(ModelRefused, match=r"unrolled.*nn\.LSTM, or a loop under torch\.jit\.script"):
        export(Unrolled(), tmp_path / "net", inputs=X)
    assert not (tmp_path / "net").exists()
    model = export(torch.jit.script(Unrolled()), tmp_path / "net", inputs=X)
    assert [state.layer for state in model.signature.states] == ["cell", "cell"]


def test_a_state_that_names_do_not_tell_is_written_to_model_toml(tmp_path: Path):
    model = export(
        Step(), tmp_path / "step", inputs={"x": "float32[batch,3]"}, states={"mine": "float32[batch,4]"}, version=3
    )
    assert (model.version, [state.name for state in model.signature.states]) == ("3", ["mine"])
    assert load(tmp_path / "step", provider="cpu").layout == model.layout


def test_a_state_told_as_an_input_is_refused_with_the_way_to_tell_it(tmp_path: Path):
    with pytest.raises(ModelRefused, match=r'keeps no state; .* tell it by --state "h='):
        export(Step(), tmp_path / "step", inputs={"x": "float32[batch,3]", "mine": "float32[batch,4]"})


def test_every_argument_of_a_script_must_be_told(tmp_path: Path):
    class Maybe(Step):
        def forward(self, x, mine: torch.Tensor | None = None):
            return self.cell(x, mine)

    with pytest.raises(ModelRefused, match="takes x, mine, and x was told"):
        export(torch.jit.script(Maybe()), tmp_path / "step", inputs={"x": "float32[batch,3]"})


def test_a_frozen_size_is_refused(tmp_path: Path):
    class Frozen(Net):
        def forward(self, x):
            return self.layer(x)[0] / int(x.shape[1])

    with (
        pytest.warns(torch.jit.TracerWarning, match="Python integer"),
        pytest.raises(ModelRefused, match=r"with other sizes .* differs from the module by .* frozen"),
    ):
        export(Frozen(nn.GRU(3, 4, batch_first=True)), tmp_path / "net", inputs=X)


def test_what_forward_takes_must_be_told_and_fit(tmp_path: Path):
    net, out = Net(nn.GRU(3, 4, batch_first=True)), tmp_path / "net"
    with pytest.raises(ModelRefused, match=r'takes x, and nothing was told; .* --input "x=float32\[batch,time,8\]"'):
        export(net, out)
    with pytest.raises(ModelRefused, match="takes x, and x, z was told"):
        export(net, out, inputs={**X, "z": "float32[3]"})
    with pytest.raises(ModelRefused, match="'x=float32 3' is no tensor"):
        export(net, out, inputs={"x": "float32 3"})
    with pytest.raises(ModelRefused, match="Expected 3, got 5"):
        export(net, out, inputs={"x": "float32[batch,time,5]"})
    with pytest.raises(ModelRefused, match=r"shapes \(2, 4\), \(2, 1\); the last must be the new mine \(2, 4\)"):
        export(Backwards(), out, inputs={"x": "float32[batch,3]"}, states={"mine": "float32[batch,4]"})
    net.example_inputs = X
    assert export(net, out).signature.inputs[0].name == "x"


def test_what_pytorch_cannot_export_is_refused_with_its_reason(tmp_path: Path):
    class Factored(Net):
        def forward(self, x):
            return torch.linalg.qr(self.layer(x)[0]).R

    with pytest.raises(ModelRefused, match=r"PyTorch cannot export it: UnsupportedOperatorError: .*qr"):
        export(Factored(nn.GRU(3, 4, batch_first=True)), tmp_path / "net", inputs=X)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of Python in the current folder."""
    (tmp_path / "nets_of_test.py").write_text(
        textwrap.dedent("""
            from torch import nn
            bare = nn.GRU(3, 4)
            def make():
                return nn.GRU(3, 4, batch_first=True)
            number = 3
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets_of_test", raising=False)
    return "nets_of_test"


@pytest.mark.parametrize(("attribute", "axes"), [("bare", "time,batch"), ("make", "batch,time")])
def test_the_command_takes_a_module_or_its_maker(source, attribute, axes, capsys: pytest.CaptureFixture[str]):
    told = ["--input", f"input=float32[{axes},3]", "--state", "hx=float32[1,batch,4]", "--version", "2"]
    assert command(["torch", f"{source}:{attribute}", "out", *told]) == 0
    assert "out: version 2, states hx" in capsys.readouterr().out
    assert f"`{source}:{attribute}` (PyTorch)" in Path("out/README.md").read_text()
    (state,) = load(Path("out").resolve(), provider="cpu").signature.states
    assert (state.layer, state.shape, np.any(state.fresh)) == ("gru_1", (1, 4), False)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("nets_of_test:nothing", "has no attribute 'nothing'"),
        ("no_such_module:net", "No module named 'no_such_module'"),
        ("nets_of_test:number", "is no nn.Module"),
        ("nets_of_test", "write it as package.module:attribute"),
    ],
)
def test_the_command_tells_what_it_cannot_find(source, where, reason, capsys: pytest.CaptureFixture[str]):
    assert command(["torch", where, "out", "--input", "input=float32[batch,time,3]"]) == 1
    assert reason in capsys.readouterr().err
    assert not Path("out").exists()


def test_the_command_tells_how_to_write_an_input(source, capsys: pytest.CaptureFixture[str]):
    assert command(["torch", f"{source}:make", "out", "--input", "float32[batch,time,3]"]) == 1
    assert "write it as x=float32[batch,time,8]" in capsys.readouterr().err


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, source):
        return self.gru(source)[1]


class Decoder(nn.Module):
    """Its input is called as outputs usually are."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, y, h):
        out, h = self.gru(y, h)
        return self.head(out), h


def test_an_encoder_makes_the_states_that_its_decoder_starts_from(tmp_path: Path):
    encoder, decoder = Encoder(), Decoder()
    model = export(
        decoder,
        tmp_path / "pair",
        inputs={"y": "float32[batch,time,2]"},
        states={"h": "float32[1,batch,4]"},
        start=encoder,
        start_inputs={"source": "float32[batch,length,3]"},
    )
    assert model.start is not None
    assert [spec.name for spec in (*model.start.inputs, *model.signature.outputs)] == ["source", "output_0"]
    assert "session.predict(..., start=...)" in (tmp_path / "pair/README.md").read_text()
    source, y = torch.randn(1, 7, 3), torch.randn(1, 5, 2)
    (found,), _ = model.program.run([y.numpy()], list(model.start.run([source.numpy()]).values()))
    with torch.no_grad():
        expected, _ = decoder(y, encoder(source))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_a_start_that_gives_no_states_is_refused_and_nothing_written(tmp_path: Path):
    told = {"inputs": {"y": "float32[batch,time,2]"}, "states": {"h": "float32[1,batch,4]"}}
    start = {"start_inputs": {"source": "float32[batch,length,3]"}}
    with pytest.raises(ModelRefused, match=r"the start gives 2 tensors .* the model has 1 states \(h\)"):
        export(Decoder(), tmp_path / "pair", **told, **start, start=Pair())
    with pytest.raises(ModelRefused, match="gives state 'h' as float32 of shape"):
        export(Decoder(), tmp_path / "pair", **told, start_inputs=X, start=Net(nn.GRU(3, 5, batch_first=True)))
    assert not (tmp_path / "pair").exists()


class Pair(Encoder):
    def forward(self, source):
        return self.gru(source)


def test_an_argument_may_be_called_as_the_output_is(tmp_path: Path):
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(3, 4, batch_first=True)

        def forward(self, y, h):
            return self.gru(y, h)

    model = export(
        Decoder(), tmp_path / "net", inputs={"y": "float32[batch,time,3]"}, states={"h": "float32[1,batch,4]"}
    )
    assert [spec.name for spec in model.signature.inputs] == ["y"]
    assert [spec.name for spec in model.signature.outputs] == ["output_0"]


def test_attention_is_refused_as_such(tmp_path: Path):
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(3, 4, batch_first=True)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            y = self.gru(x)[0]
            return self.attention(y, y, y)[0]

    with pytest.raises(ModelRefused, match="MultiheadAttention freezes"):
        export(Attention(), tmp_path / "net", inputs=X)
    assert torch.backends.mha.get_fastpath_enabled()


class Causal(nn.Module):
    """Convolutions alone, each of which looks back."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv1d(3, 4, 3), nn.Conv1d(4, 2, 2, dilation=4)

    def forward(self, x):
        y = torch.relu(self.near(nn.functional.pad(x.transpose(1, 2), (2, 0))))
        return self.far(nn.functional.pad(y, (4, 0))).transpose(1, 2)


def test_causal_convolutions_stream(tmp_path: Path):
    module = Causal()
    model = export(module, tmp_path / "net", inputs=X)
    x = torch.randn(1, 9, 3)
    states, parts = [spec.fresh[None] for spec in model.signature.states], []
    for chunk in np.split(x.numpy(), [4, 5, 6], axis=1):
        (y,), states = model.program.run([chunk], states)
        parts.append(y)
    with torch.no_grad():
        np.testing.assert_allclose(np.concatenate(parts, axis=1), module(x).numpy(), atol=1e-6)
