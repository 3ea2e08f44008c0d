"""What one run measures: not the cross product, but the cells that tell something."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from bench.models import STATE_KB

RECORD_BYTES: Final = 4_416  # of an LSTM 2x256: 4 KB of state, header, name and reply
FRAME_BYTES: Final = 18_688  # of 64 sessions: 64 inputs of 256 bytes, handles and two ids each
COUNTS: Final = (1, 16, 64, 256, 1024)
LOADS: Final = (0.1, 0.3, 0.5, 0.7, 0.9)
LARGE: Final = "off"  # the file for large states: with one, it would be the disk that is measured
MAX_BATCH: Final = 256  # the service's default


class Cell(NamedTuple):
    """One load, or one floor.

    Attributes:
        kind: floors are "raw", "echo", "stream echo" and "sets"; loads are named as loads.Sessions' methods.
        model: a key of models.EXAMPLES; empty where there is none.
        sessions: or callers, messages in flight, rows of a pipeline, rows of a run.
        durability: "committed", "checkpointed", or "memory", which keeps nothing; empty for a floor.
        store: when the append-only file is synced, or "off".
        size: bytes of a floor's message or record.
        load: the share of the peak that is offered by a schedule; 0 for as much as is answered.
    """

    kind: str
    model: str = ""
    sessions: int = 64
    durability: str = ""
    store: str = "everysec"
    size: int = 0
    load: float = 0.0

    def __str__(self) -> str:
        store = f"{self.durability} {self.store}" if self.durability else ""
        size, load = (f"{self.size} bytes" if self.size else ""), (f"at {self.load:.0%}" if self.load else "")
        return " ".join(filter(None, (self.kind, self.model, str(self.sessions), store, size, load)))

    @property
    def floor(self) -> Cell:
        """The model alone, at the batch that this cell's sessions make."""
        return Cell("raw", self.model, min(self.sessions, MAX_BATCH))


ECHO: Final = Cell("echo", size=256)
FLOORS: Final = (
    ECHO,
    Cell("stream echo", size=256),
    Cell("stream echo", sessions=2, size=FRAME_BYTES),
    Cell("sets", size=RECORD_BYTES),
)
MAIN: Final = tuple(
    Cell(kind, "lstm", 64, durability)
    for kind, durabilities in {
        "pairs": ("memory", "checkpointed", "committed"),
        "frames": ("memory", "checkpointed", "committed"),
        "packed": ("checkpointed", "committed"),
        "singles": ("memory", "checkpointed", "committed"),
        "streams": ("committed",),
        "unary": ("memory", "committed"),
    }.items()
    for durability in durabilities
)
STORES: Final = tuple(Cell("pairs", "lstm", 64, "committed", store) for store in ("off", "always"))
_COUNTS: Final = (
    *(Cell("pairs", "lstm", n, d) for d in ("memory", "checkpointed", "committed") for n in COUNTS if n != 64),
    *(Cell(kind, "lstm", n, "committed") for kind in ("singles", "unary") for n in (1, 16)),
)
_MODELS: Final = tuple(
    Cell("pairs", model, 64, durability, LARGE if model == "conv" else "everysec")
    for model in ("tiny", "gru", "wide", "conv")
    for durability in ("checkpointed", "committed")
)
_STATES: Final = tuple(
    Cell("pairs", f"state{kb}", 16, durability, LARGE)
    for durability in ("checkpointed", "committed")
    for kb in STATE_KB
)
_OFFERED: Final = tuple(
    Cell(kind, "lstm", 64, durability, load=load)
    for kind, durability in (("pairs", "committed"), ("pairs", "checkpointed"), ("singles", "committed"))
    for load in LOADS
)
_QUICK: Final = (
    *FLOORS[:2],
    *(Cell(kind, "lstm", 64, "committed") for kind in ("pairs", "packed", "singles", "unary")),
    Cell("pairs", "lstm", 64, "checkpointed"),
    Cell("pairs", "lstm", 64, "committed", load=0.5),
)


def chosen(*, quick: bool = False, only: str = "") -> list[Cell]:
    """The cells whose names the pattern `only` finds, and what they rest on, in the order to measure them in.

    A model's floor stands before its first cell, a load that is offered behind the one that finds the peak.
    """
    every = _QUICK if quick else (*FLOORS, *MAIN, *STORES, *_COUNTS, *_OFFERED, *_MODELS, *_STATES)
    ordered: dict[Cell, None] = {}
    for cell in every:
        if re.search(only, str(cell)):
            rests_on = (cell.floor, cell._replace(load=0.0)) if cell.model else ()
            ordered |= dict.fromkeys((*rests_on, cell))
    return list(ordered)
