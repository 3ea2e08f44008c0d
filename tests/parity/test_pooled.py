"""The committed models on states in a pool, on the CPU provider: the same to the last bit."""

from pathlib import Path

import pytest

from bench import models as built
from recurra.models import load
from tests.parity import pooled
from tests.parity.case import ORACLE
from tests.parity.pooled import CASES, LONG, Found, carried, case, largest_error

FOLDERS = sorted(path.parent for path in CASES.glob(f"*/{ORACLE}"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_model_gives_the_same_on_states_in_a_pool(folder: Path):
    found = [*case(folder, "cpu")]
    assert found
    assert [each for each in found if each.error] == []


def test_a_thousand_timesteps_carry_the_same_state():
    found = [*carried("cpu", LONG)]
    assert [each.timesteps for each in found] == [LONG] * 4
    assert [each for each in found if not each.good] == []


def test_a_difference_is_seen(tmp_path: Path):
    """A model of other weights stands for a provider that computes something else."""
    folder = built.repository(tmp_path, one=built.lstm(hidden=8), other=built.lstm(hidden=8, seed=8))
    one, other = load(folder / "one", provider="cpu"), load(folder / "other", provider="cpu")
    assert largest_error(one, one, (2, 1)) == 0
    error = largest_error(one, other, (2, 1))
    assert error > max(pooled.TOLERANCES.values())
    assert not Found("other", "fp32", 3, error, pooled.TOLERANCES["fp32"]).good
