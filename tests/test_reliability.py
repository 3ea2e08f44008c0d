"""docs/reliability.md names a test for each scenario, and those tests are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()
ROWS = re.findall(r"^\| (\d+)(?:-(\d+))? \| [^|]+ \|([^|]*)\| ([^|]+) \|$", PAGE, re.MULTILINE)
NOT_YET = {44, 45, 55, 58}


def test_every_scenario_has_a_row_and_all_but_four_a_test():
    numbers = [number for first, last, _, _ in ROWS for number in range(int(first), int(last or first) + 1)]
    assert numbers == list(range(1, 61))
    assert {int(first) for first, _, named, _ in ROWS if "`" not in named} <= NOT_YET
    assert {int(first) for first, _, _, outcome in ROWS if "not there yet" in outcome} == NOT_YET


@pytest.mark.parametrize(("file", "name"), re.findall(r"`([\w/]+\.py)` `(test_\w+)`", PAGE))
def test_the_tests_that_the_page_names_are_there(file: str, name: str):
    assert re.search(rf"def {name}\(", (TESTS / file).read_text())
