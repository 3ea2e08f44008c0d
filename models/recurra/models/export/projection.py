"""LSTMs with proj_size as LSTMs without: torch's exporter and ONNX know no projected state."""

from __future__ import annotations

import torch
from torch import nn

from recurra.models.refusal import ModelRefused


def unproject(lstm: nn.LSTM) -> None:
    """Makes `lstm`, in place, compute what it did by plain LSTMs.

    The projection goes into the recurrent weights: what they see, W_hh (W_hr h), is (W_hh W_hr) h. So the state that is
    kept is h before the projection, of hidden_size.
    """
    layers = [_layer(lstm, number) for number in range(lstm.num_layers)]
    directions = 1 + lstm.bidirectional

    def forward(
        x: torch.Tensor, hx: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        if hx is not None and bool(hx[0].any()):
            raise ModelRefused(
                "an LSTM with proj_size is given a hidden state: the file keeps it before the projection, which cannot "
                "be told from one after it; leave the states out, the server keeps them"
            )
        ends = []
        for number, (plain, projections) in enumerate(layers):
            cells = None if hx is None else hx[1][number * directions : (number + 1) * directions]
            x, (h, c) = plain(x, None if cells is None else (torch.zeros_like(cells), cells))
            x = x @ torch.block_diag(*projections)
            ends.append((torch.bmm(h, projections), c))
        return x, (torch.cat([h for h, _ in ends]), torch.cat([c for _, c in ends]))

    lstm.forward = forward


def _layer(lstm: nn.LSTM, number: int) -> tuple[nn.LSTM, torch.Tensor]:
    """One layer without its projections, and these: (directions, hidden_size, proj_size)."""
    directions = 1 + lstm.bidirectional
    width = lstm.proj_size * directions if number else lstm.input_size
    plain = nn.LSTM(
        width,
        lstm.hidden_size,
        bias=lstm.bias,
        batch_first=lstm.batch_first,
        bidirectional=lstm.bidirectional,
        dtype=lstm.weight_ih_l0.dtype,
        device=lstm.weight_ih_l0.device,
    )
    projections = []
    for suffix in ("", "_reverse")[:directions]:
        given = {kind: getattr(lstm, f"{kind}_l{number}{suffix}") for kind in ("weight_ih", "weight_hh", "weight_hr")}
        recurrent = given["weight_hh"].double() @ given["weight_hr"].double()
        new = {"weight_ih": given["weight_ih"], "weight_hh": recurrent}
        if lstm.bias:
            new |= {kind: getattr(lstm, f"{kind}_l{number}{suffix}") for kind in ("bias_ih", "bias_hh")}
        for kind, value in new.items():
            getattr(plain, f"{kind}_l0{suffix}").data.copy_(value)
        projections.append(given["weight_hr"].detach().T)
    return plain.eval().requires_grad_(requires_grad=False), torch.stack(projections)
