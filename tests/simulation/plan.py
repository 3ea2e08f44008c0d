"""What a run is about, drawn from its seed: who writes, on what, and what goes wrong when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from recurra.models import Model
from tests.simulation import chain
from tests.simulation.network import Weather

_OF_REPLICAS: Final = ("kill", "kill", "stop", "zombie", "zombie", "drain", "clock", "part")
_OF_THE_STORE: Final = ("cut", "cut", "cut", "stall", "full", "lag", "restart")
_LOSSES: Final = ("fail_over", "lag_and_fail_over", "roll_back", "empty")
_LEVELS: Final = (None, "committed", "checkpointed", "checkpointed", "replicated")


@dataclass
class Plan:
    """See the module's words.

    Attributes:
        users: the kind of writer, how many sessions it has, at which level of durability.
        faults: seconds since the one before, and what happens then.
        loses: the store loses what it had acknowledged.
        operations: about so many in quick succession; then they come seldom.
        failures: share of runs of the model that fail.
        mortal: sessions may expire.
    """

    replicas: int
    slots: int
    users: Sequence[tuple[str, int, Any]]
    faults: Sequence[tuple[float, str]]
    weather: Weather
    rests: Sequence[float]
    loses: bool = False
    last_seconds: float = 1.0
    checkpoint_seconds: float = 0.5
    ttl_seconds: float = 3600.0
    max_batch: int = 8
    failures: float = 0.0
    skewed: bool = False
    window_bytes: int = 1 << 20
    impatience: float = 0.0
    long: float = 0.0
    shuffles: bool = True
    operations: int = 60
    model: Model = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.model = chain.model(ttl_seconds=int(self.ttl_seconds), max_batch=self.max_batch)

    @property
    def mortal(self) -> bool:
        return self.ttl_seconds < 100.0 or any(name == "clock" for _, name in self.faults)

    @staticmethod
    def drawn(random: Random) -> Plan:
        loses, mortal = random.random() < 0.5, random.random() < 0.08
        faults = [*_OF_REPLICAS, *_OF_THE_STORE, *(_LOSSES * 2 if loses else ())]
        if not mortal:
            faults = [name for name in faults if name != "clock"]
        crowd = random.random() < 0.06
        users = []
        for _ in range(random.choice((1, 1, 2, 3))):
            kind = random.choice(("Caller", "ByHand", "Streamer", "Streamer", "Batcher", "Piper", "Rivals"))
            level = random.choice(_LEVELS)
            users.append((kind, random.choice((1, 2, 4)), level))
        if crowd:
            users = [("Streamer", 24, "checkpointed")]
        rough = random.choice((0.0, 0.01, 0.05))
        return Plan(
            replicas=random.choice((1, 2, 3)),
            slots=random.choice((4, 8, 32)) if not crowd else 32,
            users=users,
            faults=_befall(random, random.choice((0, 2, 5, 8)), (0.05, 0.3, 1.0, 2.0), faults),
            weather=Weather(
                lost=rough,
                doubled=random.choice((0.0, 0.05)),
                slow=random.choice((0.0, 0.02)),
                silent=rough / 5,
                cut=rough,
            ),
            rests=random.choice(((0.0, 0.001), (0.001, 0.05), (0.0, 0.1, 0.4), (0.05, 0.7))),
            loses=loses,
            last_seconds=random.choice((0.1, 1.0)),
            checkpoint_seconds=random.choice((0.2, 0.5, 1.0)),
            ttl_seconds=random.choice((2.0, 5.0)) if mortal else 3600.0,
            max_batch=random.choice((1, 4, 8, 64)),
            failures=random.choice((0.0, 0.0, 0.0, 0.02)),
            skewed=random.random() < 0.2,
            window_bytes=random.choice((1 << 20, 1 << 20, 60_000 if crowd else 12_000)),
            impatience=random.choice((0.0, 0.1)),
            long=random.choice((0.0, 0.0, 0.03)),
            shuffles=random.random() < 0.8,
        )

    @staticmethod
    def rivalry(random: Random) -> Plan:
        """Several write one session on servers that sleep, over a store that is thrown back."""
        faults = ("zombie", "stop", "part", "lag_and_fail_over", "lag_and_fail_over", "roll_back", "empty")
        return Plan(
            replicas=3,
            slots=8,
            users=[("Rivals", 1, level) for level in (None, "committed", "checkpointed", "checkpointed")],
            faults=_befall(random, 8, (0.05, 0.3), faults),
            weather=Weather(lost=0.03, slow=0.02, cut=0.03),
            rests=(0.0, 0.01, 0.1),
            loses=True,
            operations=300,
        )


def _befall(random: Random, count: int, pauses: Sequence[float], kinds: Sequence[str]) -> list[tuple[float, str]]:
    return [(random.choice(pauses), random.choice(kinds)) for _ in range(count)]
