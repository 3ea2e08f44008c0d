"""Chaos, in short: `make chaos` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import run


@pytest.mark.parametrize(("appendfsync", "seed"), [("everysec", 3), ("always", 4)])
async def test_whatever_dies_nothing_is_lost_or_doubled(tmp_path: Path, appendfsync: str, seed: int) -> None:
    report = await run(tmp_path, appendfsync=appendfsync, seed=seed, seconds=10, sessions=120, show=lambda _: None)
    assert report.good, report
    assert report.operations > 120
    assert report.faults
