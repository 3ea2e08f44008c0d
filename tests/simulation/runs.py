"""Many runs, in as many processes as there are cores."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Final

from tests.simulation.world import Report, simulate

_A_TASK: Final = 20

logging.getLogger("recurra").addHandler(logging.NullHandler())  # what fails is meant to


def runs(seeds: Sequence[int], *, processes: int = 0) -> Iterator[Report]:
    """A report of each seed, in no order; with a trace where something was wrong."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes or os.cpu_count(), context) as pool:
        tasks = [pool.submit(_some, seeds[at : at + _A_TASK]) for at in range(0, len(seeds), _A_TASK)]
        for done in as_completed(tasks):
            yield from done.result()


def _some(seeds: Sequence[int]) -> list[Report]:
    reports = [simulate(seed) for seed in seeds]
    for report in reports:
        if report.violation is None:
            report.trace.clear()
    gc.collect()
    return reports
