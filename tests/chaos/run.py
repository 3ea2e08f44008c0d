"""One run: build the stage, let the sessions step, bring about one fault after the other, and check every answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tests.chaos.faults import Faults
from tests.chaos.load import Load
from tests.chaos.stage import Stage

_RECOVERY_SECONDS = 60.0
Show = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """What came of it.

    Attributes:
        recovery: from when a fault's cause is over until every session was answered again, seconds.
        gone: acknowledged as committed, and not in the store that came back or took over; replayed by the SDK.
        told: errors that SDK users saw, by reason; each operation was asked again.
        lost: acknowledged, and at the end not in the store, or gone though the store was to keep it.
        doubled: in the store more often than acknowledged.
        wrong: answers that are not the oracle's.
    """

    appendfsync: str
    seed: int
    seconds: float
    sessions: int
    operations: int
    faults: dict[str, int]
    recovery_p50: float
    recovery_worst: float
    gone: int
    told: dict[str, int]
    lost: int
    doubled: int
    wrong: int

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)

    def __str__(self) -> str:
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(self.told.items())) or "none"
        lines = [
            f"appendfsync {self.appendfsync}, seed {self.seed}, {self.seconds:g} s, {self.sessions} sessions",
            f"  operations       {self.operations:,}, every answer compared with the oracle",
            f"  faults           {sum(self.faults.values())}",
            *(f"    {count:4}  {name}" for name, count in sorted(self.faults.items())),
            f"  time to recover  p50 {self.recovery_p50:.2f} s, worst {self.recovery_worst:.2f} s",
            f"  gone, replayed   {self.gone}",
            f"  asked again      {told}",
            f"  lost             {self.lost}",
            f"  doubled          {self.doubled}",
            f"  wrong            {self.wrong}",
        ]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


async def run(folder: Path, *, appendfsync: str, seed: int, seconds: float, sessions: int, show: Show) -> Report:
    """One run in an empty `folder`; `show` is told how it goes. Raises AssertionError if sessions are stuck."""
    loop, befallen, recovery = asyncio.get_running_loop(), Counter[str](), list[float]()
    async with Stage(folder, appendfsync).built() as stage:
        load = Load([server.front.address for server in stage.servers], sessions, seed)
        faults = Faults(stage, load, seed)
        async with load.running():
            await load.all_step(_RECOVERY_SECONDS)
            until = loop.time() + seconds
            while loop.time() < until:
                kinds = faults.draw()
                names = " and ".join(kind.name for kind in kinds)
                show(f"{max(0, until - loop.time()):.0f} s to go, {load.operations:,} operations; {names}")
                came = await asyncio.gather(*(kind.befall() for kind in kinds))
                befallen.update(kind.name for kind, could in zip(kinds, came, strict=True) if could is not False)
                if False in came and len(came) == 1:
                    continue
                over = loop.time()
                await load.all_step(_RECOVERY_SECONDS)
                recovery.append(loop.time() - over)
            await faults.over()
            await load.all_step(_RECOVERY_SECONDS)
        acknowledged = np.array([len(session.ys) for session in load.sessions])
        there = np.array(await stage.positions(stage.primary, [session.name for session in load.sessions]))
    return Report(
        appendfsync=appendfsync,
        seed=seed,
        seconds=seconds,
        sessions=sessions,
        operations=load.operations,
        faults=dict(befallen),
        recovery_p50=round(float(np.median(recovery)), 3),
        recovery_worst=round(max(recovery), 3),
        gone=faults.gone,
        told=dict(load.told),
        lost=faults.lost + int(np.maximum(acknowledged - there, 0).sum()),
        doubled=int(np.maximum(there - acknowledged, 0).sum()),
        wrong=sum(session.wrong() for session in load.sessions),
    )
