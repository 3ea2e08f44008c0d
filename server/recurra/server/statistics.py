"""What a model has served since the start, in plain numbers: counted once a batch, told by Triton's ModelStatistics."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass(slots=True)
class Total:
    """How many, and their seconds together."""

    count: int = 0
    seconds: float = 0.0

    def add(self, count: int, seconds: float) -> None:
        self.count += count
        self.seconds += seconds


@dataclass(slots=True)
class Computed:
    """Batches of one size: runs of the model, replies made of them, and the seconds of each part."""

    runs: int = 0
    gathering: float = 0.0
    running: float = 0.0
    packs: int = 0
    packing: float = 0.0


@dataclass(slots=True)
class Statistics:
    """Of one model.

    Attributes:
        success, fail: predicts from arrival to the answer.
        queue: predicts from arrival to the run.
        last_seconds: since the epoch, when the last batch was run.
        by_size: batches, by how many predicts they held.
    """

    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    last_seconds: float = 0.0
    by_size: defaultdict[int, Computed] = field(default_factory=lambda: defaultdict(Computed))

    def ran(self, size: int, *, at: float, waited: float, gathering: float, running: float) -> None:
        """A batch of `size` predicts was run. All but `at` in seconds; `waited`: of all of them together."""
        self.queue.count += size
        self.queue.seconds += waited
        self.last_seconds = at
        same = self.by_size[size]
        same.runs += 1
        same.gathering += gathering
        same.running += running

    def packed(self, size: int, seconds: float) -> None:
        """The replies of `size` predicts were made."""
        same = self.by_size[size]
        same.packs += 1
        same.packing += seconds

    @property
    def executions(self) -> int:
        """Runs of the model."""
        return sum(same.runs for same in self.by_size.values())

    @property
    def inferences(self) -> int:
        """Predicts that were run."""
        return sum(size * same.runs for size, same in self.by_size.items())

    def computed(self) -> tuple[Total, Total, Total]:
        """Predicts' states gathered, runs, and replies, each with the time of its whole batch: its client waits so."""
        gathered, run, packed = Total(), Total(), Total()
        for size, same in self.by_size.items():
            gathered.add(size * same.runs, size * same.gathering)
            run.add(size * same.runs, size * same.running)
            packed.add(size * same.packs, size * same.packing)
        return gathered, run, packed
