"""What was measured, as JSON: one file, a section a command, so that tables and pictures can be made of it again."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.cells import Cell

KEPT: Final = Path(__file__).with_name("results.json")
QUICK: Final = Path("out") / "quick.json"
_DIGITS: Final = 5

Figures = dict[str, list[float]]
"""By name, a value a repeat: "server", "store" and "client" in CPU microseconds a timestep, "rate" in timesteps a
second, "p50", "p99" and "p999" in milliseconds a message, "messages" how many those stand for."""


def save(section: str, found: Any, path: Path) -> None:
    """Put `found` in the place of the section; the others stay."""
    path.parent.mkdir(exist_ok=True)
    whole = load(path) if path.exists() else {}
    whole[section] = {"machine": _machine(), "found": found}
    text = json.dumps(whole, indent=1)
    path.write_text(re.sub(r"\n {4,}|\n +(?=[\]}],?\n {4,})", " ", text) + "\n")  # a line a cell, not one a number


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def rows(figures: dict[Cell, Figures]) -> list[dict[str, Any]]:
    """The cells as JSON has them, without what is usual."""
    usual = Cell("")._asdict()
    return [
        {
            "cell": {name: value for name, value in cell._asdict().items() if value != usual[name]},
            "figures": {name: [short(value) for value in values] for name, values in row.items()},
        }
        for cell, row in figures.items()
    ]


def cells(found: list[dict[str, Any]]) -> dict[Cell, Figures]:
    """The inverse of `rows`."""
    return {Cell(**row["cell"]): row["figures"] for row in found}


def short(value: float) -> float:
    """The digits that mean something."""
    return float(f"{value:.{_DIGITS}g}")


def _machine() -> dict[str, Any]:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {"cpu": names[0] if names else "", "cores": os.cpu_count(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
