"""Inputs that tell a graph of its sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recurra.models import ModelRefused, load
from tests.models import graphs

TOML = """
[inputs.START]
control = "start"
values = {start}
[inputs.READY]
constant = 1
[inputs.END]
control = "end"
[inputs.CORRID]
control = "corrid"
"""


@pytest.mark.parametrize("kind", [graphs.FLOAT, graphs.INT32, graphs.BOOL])
@pytest.mark.parametrize("values", ["[0, 1]", "[1, 0]"])
def test_a_start_control_says_yes_in_a_fresh_state_and_no_ever_after(tmp_path: Path, kind: int, values: str):
    graphs.write(graphs.controlled(start=kind, turned=values == "[1, 0]"), tmp_path, "m")
    (tmp_path / "m/model.toml").write_text(TOML.format(start=values))
    model = load(tmp_path / "m", provider="cpu")
    assert [spec.name for spec in model.signature.inputs] == ["x", "END", "CORRID"]
    assert {spec.name for spec in model.signature.states} == {"h_in", "START"}
    x = np.random.default_rng(0).standard_normal((1, 5, 2)).astype(np.float32)
    flags = [np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int64)]
    states = [state.fresh[None] for state in model.signature.states]
    first, states = model.program.run([x[:, :2], *flags], states)
    second, _ = model.program.run([x[:, 2:], *flags], states)
    np.testing.assert_allclose(np.concatenate([first[0], second[0]], 1)[0], graphs.controlled_run(x[0]), rtol=1e-6)


def test_a_control_that_is_none_is_refused_by_its_name(tmp_path: Path):
    graphs.write(graphs.controlled(), tmp_path, "m")
    (tmp_path / "m/model.toml").write_text('[inputs.START]\ncontrol = "begin"\n')
    with pytest.raises(ModelRefused, match=r"inputs\.START\.control = 'begin': must be one of start, end, corrid"):
        load(tmp_path / "m", provider="cpu")
