"""Thousands of simulated runs: whatever befalls them, every reply is right and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.runs import runs
from tests.simulation.world import failed, simulate

SEEDS = 2000
FOUND_WITHIN = 40  # seeds, each mutant


def test_nothing_is_lost_doubled_or_wrong_in_any_run() -> None:
    seen = Counter[str]()
    for report in runs(range(SEEDS)):
        assert report.violation is None, failed(report)
        seen += report.seen
    happened = {name.split()[1] for name in seen if name.startswith("FAULT")}
    assert happened >= {"kill", "stop", "zombie", "drain", "part", "clock"}
    assert happened >= {"cut", "stall", "full", "lag", "restart", "fail_over", "roll_back", "empty"}
    assert seen["vague"] < SEEDS // 20


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught_by_what_it_does(name: str) -> None:
    """By a wrong reply or a broken invariant, not by a crash, nor by an error."""
    found: list[str] = []
    with MUTANTS[name].applied():
        for seed in range(FOUND_WITHIN):
            report = simulate(seed, MUTANTS[name].plan)
            if report.wrong:
                return
            found.append(str(report.violation))
    pytest.fail(f"not caught: {Counter(found)}")


@pytest.mark.parametrize("name", MUTANTS)
def test_without_its_mutant_a_seed_that_finds_it_passes(name: str) -> None:
    for seed in range(FOUND_WITHIN):
        with MUTANTS[name].applied():
            caught = simulate(seed, MUTANTS[name].plan).wrong
        if caught:
            report = simulate(seed, MUTANTS[name].plan)
            assert report.violation is None, failed(report)
            return


def test_a_seed_replays_identically_in_another_process() -> None:
    for seed in (3, 7):
        command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed)]
        again = [subprocess.run(command, capture_output=True, text=True, check=False).stdout for _ in range(2)]
        assert again[0] == again[1] == "\n".join([*simulate(seed).trace, "nothing is wrong", ""])
