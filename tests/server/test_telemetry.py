import io
import json
import logging
import math
import re
import urllib.request
from pathlib import Path

import pytest

from recurra.server import telemetry
from recurra.server.telemetry import Log, Metrics


@pytest.fixture(autouse=True)
def _logging_as_before():
    root, own = logging.getLogger(), logging.getLogger("recurra")
    handlers, level = list(root.handlers), own.level
    yield
    root.handlers[:] = handlers
    own.setLevel(level)


@pytest.fixture
def log() -> Log:
    return Log("recurra.server.test")


def test_an_event_is_one_line_of_text(log):
    stream = io.StringIO()
    telemetry.configure("info", "text", stream)
    log.info("store.started", pid=7, folder=Path("/a b"), note='say "hi"\nthere', none=None, quick=True, empty="")
    line = stream.getvalue()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    store\.started .*\n", line)
    assert r'pid=7 folder="/a b" note="say \"hi\"\nthere" none=null quick=true empty=""' in line


def test_an_event_is_one_json_object(log):
    stream = io.StringIO()
    telemetry.configure("debug", "json", stream)
    log.debug("batch.ran", seconds=0.25, sessions=3)
    event = json.loads(stream.getvalue())
    assert event.pop("time").endswith("Z")
    assert event == {"level": "debug", "event": "batch.ran", "seconds": 0.25, "sessions": 3}


def test_a_workers_events_tell_its_number(log):
    stream = io.StringIO()
    telemetry.configure("info", "text", stream, worker=2)
    log.info("batch.ran", sessions=3)
    logging.getLogger("asyncio").warning("lost")
    assert stream.getvalue().count(" worker=2 ") == 2


def test_the_level_holds_and_configuring_again_replaces(log):
    first, second = io.StringIO(), io.StringIO()
    telemetry.configure("debug", "text", first)
    telemetry.configure("warning", "text", second)
    log.info("session.created")
    log.warning("store.died", error=OSError("gone"))
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1
    assert "store.died error=gone" in second.getvalue()


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_stays_on_the_events_line(log, form):
    stream = io.StringIO()
    telemetry.configure("info", form, stream)
    try:
        raise ValueError("bad")  # noqa: TRY301
    except ValueError:
        log.exception("batch.failed", model="m", loss=math.nan)
    assert stream.getvalue().count("\n") == 1
    assert "Traceback" in stream.getvalue()


def test_another_librarys_warning_is_an_event_too():
    stream = io.StringIO()
    telemetry.configure("info", "json", stream)
    logging.getLogger("asyncio").info("unseen")
    logging.getLogger("asyncio").warning("task %s", "lost")
    event = json.loads(stream.getvalue())
    assert (event["event"], event["logger"], event["message"]) == ("library.logged", "asyncio", "task lost")


def test_a_long_field_is_cut(log):
    stream = io.StringIO()
    telemetry.configure("info", "json", stream)
    log.info("model.refused", why="x" * 100_000)
    assert len(stream.getvalue()) < 3_000


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as reply:
        return reply.read().decode()


def test_metrics_are_served_in_base_units_without_sessions():
    metrics = Metrics()
    model = metrics.for_model("forecast")
    assert metrics.for_model("forecast") is model
    metrics.observe_request("Predict", "OK", 0.003)
    metrics.observe_request("Predict", "OK", 0.003)
    metrics.observe_store("EVALSHA", 0.001)
    metrics.count_error("DIVERGED")
    model.count_timesteps(64)
    model.count_operations("predict", 3)
    model.count_operations("reset")
    model.count_conflicts()
    model.observe_batch(3)
    for stage in ("queue", "load", "run", "pack", "commit"):
        model.observe_stage(stage, 0.001)
    model.count_state_bytes(to_host=4096, to_device=256)
    metrics.set_nodes("forecast", {"CUDAExecutionProvider": 7, "CPUExecutionProvider": 2}, 1)
    model.set_queue(5)
    model.set_live_sessions(6)
    server = metrics.serve_metrics("127.0.0.1:0")
    try:
        text = scrape(server.address)
    finally:
        server.close()
    for line in (
        'recurra_requests_total{code="OK",method="Predict"} 2.0',
        'recurra_request_seconds_count{method="Predict"} 2.0',
        'recurra_timesteps_total{model="forecast"} 64.0',
        'recurra_operations_total{kind="predict",model="forecast"} 3.0',
        'recurra_operations_total{kind="reset",model="forecast"} 1.0',
        'recurra_batch_size_sum{model="forecast"} 3.0',
        'recurra_stage_seconds_count{model="forecast",stage="commit"} 1.0',
        'recurra_queue_operations{model="forecast"} 5.0',
        'recurra_state_bytes_total{direction="to_host",model="forecast"} 4096.0',
        'recurra_state_bytes_total{direction="to_device",model="forecast"} 256.0',
        'recurra_model_nodes{model="forecast",provider="CPUExecutionProvider"} 2.0',
        'recurra_model_stray_nodes{model="forecast"} 1.0',
        'recurra_live_sessions{model="forecast"} 6.0',
        'recurra_store_seconds_count{command="EVALSHA"} 1.0',
        'recurra_conflicts_total{model="forecast"} 1.0',
        'recurra_errors_total{reason="DIVERGED"} 1.0',
    ):
        assert line in text
    labels = set(re.findall(r"[{,](\w+)=", "\n".join(line for line in text.splitlines() if line.startswith("recurra"))))
    assert labels <= {"method", "code", "model", "kind", "stage", "command", "reason", "le", "direction", "provider"}


def test_two_servers_in_one_process_count_apart():
    first, second = Metrics(), Metrics()
    first.for_model("m").count_timesteps(1)
    servers = [first.serve_metrics("127.0.0.1:0"), second.serve_metrics("127.0.0.1:0")]
    try:
        assert 'recurra_timesteps_total{model="m"} 1.0' in scrape(servers[0].address)
        assert 'recurra_timesteps_total{model="m"}' not in scrape(servers[1].address)
    finally:
        for server in servers:
            server.close()


def test_a_taken_metrics_address_is_an_error():
    server = Metrics().serve_metrics("127.0.0.1:0")
    try:
        with pytest.raises(OSError, match="in use"):
            Metrics().serve_metrics(server.address)
    finally:
        server.close()
