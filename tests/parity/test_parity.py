"""Committed model folders, served, against their frameworks; or those in the folder that PARITY_CASES names."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from recurra.client import Client
from tests.parity.case import ORACLE, Oracle
from tests.parity.served import largest_error, serving

FOLDER = Path(os.environ.get("PARITY_CASES", Path(__file__).with_name("cases"))).resolve()
CASES = sorted(path.parent for path in FOLDER.glob(f"*/{ORACLE}"))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving(FOLDER) as client:
        yield client


def test_there_are_cases():
    assert CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_served_model_gives_what_its_framework_gives(client: Client, case: Path):
    assert largest_error(client, case) <= 1e-5


def test_what_differs_is_seen(client: Client, tmp_path: Path):
    right = Oracle.load(CASES[0])
    (name, y), *_ = right.outputs.items()
    worse = y.copy()
    worse[-1, -1] += 1e-3
    altered = tmp_path / CASES[0].name
    altered.mkdir()
    replace(right, outputs={**right.outputs, name: worse}).save(altered)
    assert 1e-4 < largest_error(client, altered) < 1e-2


def test_that_one_layer_alone_was_reset_is_seen(client: Client, tmp_path: Path):
    case = next(case for case in CASES if (reset := Oracle.load(case).reset) and len(_layers(client, case) - {reset}))
    altered = tmp_path / case.name
    altered.mkdir()
    replace(Oracle.load(case), reset="").save(altered)
    assert largest_error(client, altered) > 1e-3


def _layers(client: Client, case: Path) -> set[str]:
    return {state.layer for state in client.model(case.name).states}
