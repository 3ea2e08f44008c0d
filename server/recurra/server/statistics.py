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
    """What was done for batches: states gathered, the model run, replies made."""

    input: Total = field(default_factory=Total)
    infer: Total = field(default_factory=Total)
    output: Total = field(default_factory=Total)


@dataclass(slots=True)
class Statistics:
    """Of one model. Each predict counts for itself, with the time of its whole batch, as its client waits for that.

    Attributes:
        inferences, executions: predicts that were run, and the batches of them.
        last_seconds: since the epoch, when the last batch was run.
        success, fail: from arrival to the answer.
        queue: from arrival to the run.
        computed: of all; `by_size`: of batches, by how many predicts they held.
    """

    inferences: int = 0
    executions: int = 0
    last_seconds: float = 0.0
    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    computed: Computed = field(default_factory=Computed)
    by_size: defaultdict[int, Computed] = field(default_factory=lambda: defaultdict(Computed))

    def ran(self, size: int, *, at: float, waited: float, gathering: float, running: float) -> None:
        """A batch of `size` predicts was run. All but `at` in seconds; `waited`: of all of them together."""
        self.inferences += size
        self.executions += 1
        self.last_seconds = at
        self.queue.add(size, waited)
        self.computed.input.add(size, size * gathering)
        self.computed.infer.add(size, size * running)
        same = self.by_size[size]
        same.input.add(1, gathering)
        same.infer.add(1, running)

    def packed(self, size: int, seconds: float) -> None:
        """The replies of `size` predicts were made."""
        self.computed.output.add(size, size * seconds)
        self.by_size[size].output.add(1, seconds)
