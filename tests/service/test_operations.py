"""Operating a server: its ready line, health, reflection, metrics, bad settings, and the limit of its queue."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from recurra.v1 import model_pb2
from recurra.wire.errors import InvalidArgument, Overloaded, RecurraError
from tests.conftest import StartServer
from tests.service.caller import Caller
from tests.service.processes import SERVE, ServerProcess
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
X = LSTM.draw(0, 4)


def test_the_ready_line_gives_the_address_and_nothing_else_is_printed(start_server: StartServer):
    server = start_server()
    assert re.fullmatch(r"127\.0\.0\.1:\d+", server.address)
    assert server.process is not None
    assert server.process.stdout is not None
    server.process.terminate()
    assert server.process.stdout.read() == b""
    assert server.wait() == 0


def test_all_models_are_listed_those_that_failed_too(caller: Caller):
    models = {each.name: each for each in caller.call(caller.models.ListModels, model_pb2.ListModelsRequest()).models}
    assert models.keys() == {*MODELS, "broken"}
    ready = {name for name, model in models.items() if model.status == model_pb2.MODEL_STATUS_READY}
    assert ready == set(MODELS)
    assert models["broken"].error
    assert all(models[name].self_test.chunked and models[name].self_test.batched for name in MODELS)


def test_health_answers_for_the_server(caller: Caller):
    check = health_pb2_grpc.HealthStub(caller.channel).Check
    assert check(health_pb2.HealthCheckRequest(), timeout=5).status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_names_the_services(caller: Caller):
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    [answer] = stub.ServerReflectionInfo(iter([asked]), timeout=5)
    names = {service.name for service in answer.list_services_response.service}
    assert {
        "recurra.v1.InferenceService",
        "recurra.v1.SessionService",
        "recurra.v1.ModelService",
        "grpc.health.v1.Health",
    } <= names


def scraped(server: ServerProcess) -> dict[str, float]:
    """The server's samples, by name and labels."""
    found = re.search(r"metrics.ready address=(\S+)", server.log)
    assert found, server.log
    with urlopen(f"http://{found[1]}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    return {
        name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line.startswith("recurra_"))
    }


def test_metrics_count_what_was_served(start_server: StartServer):
    server = start_server("--metrics", "127.0.0.1:0")
    with Caller(server.address) as caller:
        for _ in range(3):
            caller.predict("lstm", "its name", X)
        with pytest.raises(RecurraError):
            caller.predict("nobody", "its name", X)
    samples = scraped(server)
    assert samples['recurra_timesteps_total{model="lstm"}'] == 12
    assert samples['recurra_errors_total{reason="MODEL_NOT_FOUND"}'] == 1
    assert samples['recurra_live_sessions{model="lstm"}'] == 1
    assert samples['recurra_store_seconds_count{command="commit"}'] == 3
    assert not any("its name" in name for name in samples)


def test_metrics_count_conflicts_with_other_servers(start_server: StartServer):
    one = start_server("--metrics", "127.0.0.1:0")
    two = start_server(store=f"unix://{one.store_socket}")
    with Caller(one.address) as first, Caller(two.address) as second:
        for caller in (first, second, first):
            caller.predict("lstm", "s", X)
    assert scraped(one)['recurra_conflicts_total{model="lstm"}'] == 1


@pytest.mark.parametrize(
    ("flags", "variables", "named"),
    [
        (["--slots", "none"], {}, "--slots"),
        (["--slots", "0"], {}, "--slots"),
        (["--stroe", "embedded"], {}, "--stroe"),
        (["--listen", "8500"], {}, "--listen"),
        (["--models", "/no/such/folder"], {}, "--models"),
        ([], {"RECURRA_QUEUE_LIMIT": "many"}, "RECURRA_QUEUE_LIMIT"),
        ([], {"RECURRA_QUEUE_LIMITS": "1"}, "RECURRA_QUEUE_LIMITS"),
    ],
)
def test_a_wrong_setting_stops_the_server_by_name(repository: Path, tmp_path: Path, flags, variables, named: str):
    given = ["--models", str(repository), "--data", str(tmp_path), "--listen", "127.0.0.1:0", *flags]
    ended = subprocess.run(
        [sys.executable, "-c", SERVE, *given],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert named in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stdout == ""


def test_a_port_that_is_taken_stops_the_server(repository: Path, tmp_path: Path, server: ServerProcess):
    given = ["--models", str(repository), "--data", str(tmp_path), "--listen", server.address]
    ended = subprocess.run(
        [sys.executable, "-c", SERVE, *given], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 1
    assert server.address.rpartition(":")[2] in ended.stderr


def test_a_full_queue_refuses_with_a_time_to_come_back_while_others_go_on(start_server: StartServer):
    with Caller(start_server("--queue-limit", "8").address) as caller:
        x = LSTM.draw(1, 2000)
        sent = [caller.send("lstm", f"s{row}", x, return_sequences=False) for row in range(100)]
        gru = [caller.predict("gru", "s", X) for _ in range(5)]
        assert gru[-1].position == 20
        outcomes = [pending.outcome() for pending in sent]
        refused = [outcome for outcome in outcomes if isinstance(outcome, RecurraError)]
        assert refused
        assert len(refused) < 100
        assert {type(error) for error in refused} == {Overloaded}
        assert all(error.retry_after is not None and 0 < error.retry_after < 10 for error in refused)
        want = LSTM.whole(x)[-1]
        for row, outcome in enumerate(outcomes):
            if isinstance(outcome, RecurraError):
                assert caller.predict("lstm", f"s{row}", X).position == 4  # it consumed nothing
            else:
                np.testing.assert_allclose(outcome.y, want, rtol=0, atol=1e-4)


def test_a_full_queue_refuses_a_frame_whole(start_server: StartServer):
    with Caller(start_server("--queue-limit", "8").address) as caller:
        with caller.stream("lstm", [f"s{row}" for row in range(9)]) as stream:
            x = np.stack([X] * 9)
            refused = stream.ask(range(9), x)
            assert isinstance(refused.refused, InvalidArgument)  # it would never fit
            served = stream.ask(range(8), x[:8])
        assert served.errors == {}
        np.testing.assert_allclose(served.y[7], LSTM.whole(X), **CLOSE)


def test_parallel_clients_of_a_small_queue_all_finish_by_coming_back(start_server: StartServer):
    def client(address: str, row: int) -> int:
        with Caller(address) as caller:
            applied = 0
            while applied < 5:
                try:
                    caller.predict("lstm", f"s{row}", X)
                except Overloaded:
                    continue
                applied += 1
            return caller.get("lstm", f"s{row}").position

    address = start_server("--queue-limit", "2").address
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda row: client(address, row), range(8))) == [20] * 8
