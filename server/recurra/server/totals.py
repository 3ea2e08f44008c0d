"""The metrics of several processes as one: each writes its own to files in a folder, here they are added up."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from recurra.server.crew import Worker
from recurra.server.telemetry import MetricsServer

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"  # where a process that has this variable writes its metrics


class Totals:
    """The metrics server of workers, which have `environ`, and of this process. What the dead counted stays counted."""

    def __init__(self, folder: str, address: str, crew: Sequence[Worker]) -> None:
        """Raises OSError."""
        self.environ: Final = {FOLDER: folder}
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        registry.register(_Processes(crew))
        registry.register(_Workers(crew))
        self._server = MetricsServer(registry, address)
        self.address = self._server.address

    def forget(self, pid: int) -> None:
        """A process is gone: its gauges count no longer."""
        mark_process_dead(pid, self.environ[FOLDER])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._server.close()


@contextmanager
def totals(address: str, crew: Sequence[Worker]) -> Iterator[Totals]:
    """Serve those of the crew, which may come later, inside the block. Raises OSError."""
    with TemporaryDirectory(prefix="recurra-metrics-") as folder:
        served = Totals(folder, address, crew)
        try:
            yield served
        finally:
            served.close()


class _Processes(Collector):
    """CPU time, memory and files of all processes together, since the start of the first."""

    def __init__(self, crew: Sequence[Worker]) -> None:
        self._crew = crew

    def collect(self) -> Iterable[Metric]:
        sums: dict[str, Metric] = {}
        for pid in (os.getpid(), *(worker.pid for worker in self._crew if worker.pid is not None)):
            for each in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                total = sums.setdefault(each.name, each)
                if total is not each and each.name != "process_start_time_seconds":
                    value = total.samples[0].value + each.samples[0].value
                    total.samples[0] = total.samples[0]._replace(value=value)
        return sums.values()


class _Workers(Collector):
    """Which workers there are."""

    def __init__(self, crew: Sequence[Worker]) -> None:
        self._crew = crew

    def collect(self) -> Iterable[Metric]:
        about = "Whether the worker has a process; the GPU that it sees, if it is told one."
        up = GaugeMetricFamily("recurra_worker_up", about, labels=["worker", "device"])
        for worker in self._crew:
            up.add_metric([str(worker.number), worker.device], float(worker.pid is not None))
        return [up]
