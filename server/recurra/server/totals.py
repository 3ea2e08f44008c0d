"""The metrics of several processes as one: each writes its own to files in a folder, here they are added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from recurra.server.telemetry import MetricsServer

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"  # where a process that has this variable writes its metrics


class Totals:
    """The metrics server of all processes that have `environ`. What the dead ones counted stays counted."""

    def __init__(self, folder: str, address: str, living: Callable[[], Iterable[int]]) -> None:
        """`living`: the ids of the processes, this one first. Raises OSError."""
        self.environ: Final = {FOLDER: folder}
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        registry.register(_Processes(living))
        self._server = MetricsServer(registry, address)
        self.address = self._server.address

    def forget(self, pid: int) -> None:
        """A process is gone: its gauges count no longer."""
        mark_process_dead(pid, self.environ[FOLDER])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._server.close()


@contextmanager
def totals(address: str, living: Callable[[], Iterable[int]]) -> Iterator[Totals]:
    """Serve them inside the block. Raises OSError."""
    with TemporaryDirectory(prefix="recurra-metrics-") as folder:
        served = Totals(folder, address, living)
        try:
            yield served
        finally:
            served.close()


class _Processes(Collector):
    """CPU time, memory and files of all processes together, since the start of the first."""

    def __init__(self, living: Callable[[], Iterable[int]]) -> None:
        self._living = living

    def collect(self) -> Iterable[Metric]:
        sums: dict[str, Metric] = {}
        for pid in self._living():
            for each in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                total = sums.setdefault(each.name, each)
                if total is not each and each.name != "process_start_time_seconds":
                    value = total.samples[0].value + each.samples[0].value
                    total.samples[0] = total.samples[0]._replace(value=value)
        return sums.values()
