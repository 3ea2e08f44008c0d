"""What the server tells about itself: structured logs, and Prometheus metrics in base units.

An event is a "noun.verb" with fields; tensors' contents never stand in one, nor do session ids label a metric.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TextIO, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from recurra.server.settings import split_address
from recurra.server.statistics import Statistics

Field = str | float | Path | BaseException | None
Kind = Literal["predict", "reset", "set_state", "end"]
Stage = Literal["queue", "load", "run", "pack", "commit"]

MAX_FIELD_CHARACTERS: Final = 2_000
_BARE: Final = re.compile(r"[^\s\"=\\\x00-\x1f\x7f]+")

_REQUEST_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_STAGE_SECONDS: Final = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)
_BATCH_SIZES: Final = tuple(1 << power for power in range(13))


class Log:
    """The log of one module. Each method takes an event's name and its fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Field) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Field) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Field) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Field) -> None:
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Field) -> None:
        """Log an error with the traceback of the exception being handled."""
        self._log(logging.ERROR, event, fields, sys.exception())

    def _log(self, level: int, event: str, fields: Mapping[str, Field], trace: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", event, exc_info=trace, extra={"fields": fields}, stacklevel=3)


class _Formatter(logging.Formatter):
    """One line a record: logfmt, or JSON. A record of another library becomes the event "library.logged"."""

    def __init__(self, form: Literal["text", "json"], worker: int | None) -> None:
        super().__init__()
        self._form = form
        self._always: Mapping[str, Field] = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields: Mapping[str, Field] | None = getattr(record, "fields", None)
        if fields is None:
            event, fields = "library.logged", {"logger": record.name, "message": record.getMessage()}
        else:
            event = record.getMessage()
        shown = {name: _plain(value) for name, value in {**self._always, **fields}.items()}
        if record.exc_info and record.exc_info[1]:
            shown["traceback"] = self.formatException(record.exc_info)
        if self._form == "json":
            return json.dumps({"time": time, "level": record.levelname.lower(), "event": event} | shown)
        return " ".join((time, f"{record.levelname:<7}", event, *(f"{name}={_logfmt(shown[name])}" for name in shown)))


def configure(
    level: str, form: Literal["text", "json"], stream: TextIO | None = None, *, worker: int | None = None
) -> None:
    """Send the project's events from `level` on, and other libraries' warnings, to `stream` (default: stderr).

    `worker`: the number of this process, told with each event.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(form, worker))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, _Formatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("recurra").setLevel(level.upper())
    # What goes wrong in a call is told by api/errors.py; this one has a traceback for each caller that went away.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)


class ModelMetrics:
    """One model's metrics, their labels resolved once; every method is cheap enough for each batch.

    Attributes:
        statistics: the same in plain numbers, for who asks over the API.
    """

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._timesteps = metrics.timesteps.labels(model)
        self._operations = {kind: metrics.operations.labels(model, kind) for kind in get_args(Kind)}
        self._batch_size = metrics.batch_size.labels(model)
        self._stages = {stage: metrics.stage_seconds.labels(model, stage) for stage in get_args(Stage)}
        self._queue = metrics.queue_operations.labels(model)
        self._live = metrics.live_sessions.labels(model)
        self._conflicts = metrics.conflicts.labels(model)
        self._to_host = metrics.state_bytes.labels(model, "to_host")
        self._to_device = metrics.state_bytes.labels(model, "to_device")
        self.statistics = Statistics()

    def count_timesteps(self, timesteps: int) -> None:
        self._timesteps.inc(timesteps)

    def count_operations(self, kind: Kind, operations: int = 1) -> None:
        self._operations[kind].inc(operations)

    def count_conflicts(self, conflicts: int = 1) -> None:
        self._conflicts.inc(conflicts)

    def count_state_bytes(self, *, to_host: int = 0, to_device: int = 0) -> None:
        self._to_host.inc(to_host)
        self._to_device.inc(to_device)

    def observe_batch(self, sessions: int) -> None:
        self._batch_size.observe(sessions)

    def observe_stage(self, stage: Stage, seconds: float) -> None:
        self._stages[stage].observe(seconds)

    def set_queue(self, operations: int) -> None:
        self._queue.set(operations)

    def set_live_sessions(self, sessions: int) -> None:
        self._live.set(sessions)


class MetricsServer:
    """The HTTP server that Prometheus scrapes. `address` is the "HOST:PORT" that it is really on."""

    def __init__(self, registry: CollectorRegistry, address: str) -> None:
        """Serve in a thread on "HOST:PORT" until it is closed. Raises OSError."""
        host, port = split_address(address)
        self._server, self._thread = start_http_server(port, host, registry)
        self.address = f"{f'[{host}]' if ':' in host else host}:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self._requests = Counter("recurra_requests", "RPCs answered.", ["method", "code"], registry=own)
        self._request_seconds = Histogram(
            "recurra_request_seconds",
            "From an RPC's arrival to its end.",
            ["method"],
            registry=own,
            buckets=_REQUEST_SECONDS,
        )
        self.timesteps = Counter("recurra_timesteps", "Timesteps computed.", ["model"], registry=own)
        self.operations = Counter("recurra_operations", "Operations applied.", ["model", "kind"], registry=own)
        self.batch_size = Histogram(
            "recurra_batch_size", "Sessions in a batch.", ["model"], registry=own, buckets=_BATCH_SIZES
        )
        self.stage_seconds = Histogram(
            "recurra_stage_seconds",
            "A batch's time by stage.",
            ["model", "stage"],
            registry=own,
            buckets=_STAGE_SECONDS,
        )
        self.queue_operations = Gauge(
            "recurra_queue_operations", "Operations waiting.", ["model"], registry=own, multiprocess_mode="livesum"
        )
        self.live_sessions = Gauge(
            "recurra_live_sessions", "Sessions in slots.", ["model"], registry=own, multiprocess_mode="livesum"
        )
        self._store_seconds = Histogram(
            "recurra_store_seconds", "Round trips to the store.", ["command"], registry=own, buckets=_STAGE_SECONDS
        )
        self.conflicts = Counter("recurra_conflicts", "Commits refused by compare-and-set.", ["model"], registry=own)
        self.state_bytes = Counter(
            "recurra_state_bytes",
            "Bytes of states copied between the device and the host.",
            ["model", "direction"],
            registry=own,
        )
        self._errors = Counter("recurra_errors", "Errors answered, by reason.", ["reason"], registry=own)
        self._nodes = Gauge(
            "recurra_model_nodes",
            "Nodes of a model's graph, by what runs them.",
            ["model", "provider"],
            registry=own,
            multiprocess_mode="livemax",
        )
        self._strays = Gauge(
            "recurra_model_stray_nodes",
            "Nodes that compute on the CPU though their model is on a GPU.",
            ["model"],
            registry=own,
            multiprocess_mode="livemax",
        )
        self._models: dict[str, ModelMetrics] = {}
        self._by_label: dict[tuple[str, ...], tuple[Counter, Histogram]] = {}
        self._by_command: dict[str, Histogram] = {}

    def for_model(self, model: str) -> ModelMetrics:
        """The model's own metrics; the same object for the same name."""
        if model not in self._models:
            self._models[model] = ModelMetrics(self, model)
        return self._models[model]

    def set_nodes(self, model: str, nodes: Mapping[str, int], strays: int) -> None:
        """Where a model's nodes run; `strays`: how many compute on the CPU though the model is on a GPU."""
        for provider, count in nodes.items():
            self._nodes.labels(model, provider).set(count)
        self._strays.labels(model).set(strays)

    def observe_request(self, method: str, code: str, seconds: float) -> None:
        """Count one RPC of a known method by its gRPC status code's name, such as "OK", and its time."""
        bound = self._by_label.get((method, code))
        if bound is None:
            bound = self._requests.labels(method, code), self._request_seconds.labels(method)
            self._by_label[method, code] = bound
        bound[0].inc()
        bound[1].observe(seconds)

    def observe_store(self, command: str, seconds: float) -> None:
        """Time one round trip to the store, named by its command."""
        bound = self._by_command.get(command)
        if bound is None:
            bound = self._by_command[command] = self._store_seconds.labels(command)
        bound.observe(seconds)

    def count_error(self, reason: str) -> None:
        self._errors.labels(reason).inc()

    def serve_metrics(self, address: str) -> MetricsServer:
        """Serve them over HTTP on "HOST:PORT", in a thread, until the result is closed. Raises OSError, ValueError."""
        return MetricsServer(self.registry, address)


def _plain(value: Field) -> str | float | None:
    if value is None or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    text = str(value)
    return text if len(text) <= MAX_FIELD_CHARACTERS else f"{text[:MAX_FIELD_CHARACTERS]}..."


def _logfmt(value: str | float | None) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)
