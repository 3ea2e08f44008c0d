"""`recurra serve --provider cuda`: what it keeps, moves and counts. Every output is zero here."""

from __future__ import annotations

import re
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from recurra.client import Client
from recurra.models import load
from tests.conftest import StartServer
from tests.rehearsal import standin
from tests.rehearsal.calls import Log
from tests.service.caller import Caller
from tests.service.processes import ServerProcess, ValkeyProcess, free_address
from tests.service.zoo import MODELS

LSTM: Final = MODELS["lstm"]
OUTPUT, TOLD = 8, 4  # bytes that a timestep and a run of one session bring to the host
LATE: Final = ("--checkpoint-seconds", "600")


@pytest.fixture(scope="module")
def models(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    shutil.copytree(repository / "lstm", made / "lstm")
    return made


@pytest.fixture(scope="module")
def state_bytes(models: Path) -> int:
    return load(models / "lstm", provider="cpu").signature.state_bytes


@pytest.fixture
def cuda(
    start_server: StartServer, models: Path, valkey: ValkeyProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[ServerProcess, Log, str]]:
    """Starts servers on CUDA: each with its calls, and where its metrics are."""
    logs = iter(range(9))

    def start(*flags: str) -> tuple[ServerProcess, Log, str]:
        path, metrics = tmp_path / f"calls-{next(logs)}", free_address()
        monkeypatch.setenv(standin.LOG, str(path))
        flags = ("--provider", "cuda", "--states", "device", "--metrics", metrics, *flags)
        server = start_server(*flags, models=models, store=valkey.url, seconds=60)
        assert "states=device" in server.log
        return server, Log(path), metrics

    return start


def crossed(metrics: str) -> dict[str, int]:
    """recurra_state_bytes_total by direction."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    found = re.findall(r"^recurra_state_bytes_total\{(.*)\} (\S+)$", text, re.MULTILINE)
    return {re.search(r'direction="(\w+)"', labels)[1]: int(float(value)) for labels, value in found}


def positions(server: ServerProcess, names: list[str]) -> list[int]:
    """Where the store has the sessions."""
    with Caller(server.address) as caller:
        return [caller.get("lstm", name).position for name in names]


def test_no_state_crosses_between_checkpoints_and_those_that_do_are_counted(cuda, state_bytes: int):
    server, log, metrics = cuda(*LATE)
    names, xs = ["a", "b", "c"], LSTM.draw(1, 20)
    with Client(server.address) as client:
        stream = client.stream("lstm", durability="checkpointed")
        for name in names * 2:  # then the server owns them
            stream.predict(name, xs[0])
        before = crossed(metrics)
        with log.during() as calls:
            for x in xs[2:]:
                for name in names:
                    assert not stream.predict(name, x).any()
        assert crossed(metrics) == before
        assert sum(calls.copies("DtoH")) == 18 * len(names) * (OUTPUT + TOLD)
        with log.during() as calls:
            assert positions(server, names) == [20] * len(names)  # which has them written
        after = crossed(metrics)
        assert after["to_host"] - before["to_host"] == sum(calls.copies("DtoH")) == len(names) * state_bytes
        assert after["to_device"] == before["to_device"]
        stream.close()


def test_a_committed_step_brings_its_new_state_and_no_other(cuda, state_bytes: int):
    server, log, metrics = cuda()
    with Client(server.address) as client:
        session = client.session("lstm", "s")
        session.predict(LSTM.draw(1, 1))
        before = crossed(metrics)
        with log.during() as calls:
            for turn in range(10):
                session.predict(LSTM.draw(turn, 1))
        after = crossed(metrics)
    assert after["to_host"] - before["to_host"] == 10 * state_bytes
    assert sum(calls.copies("DtoH")) == 10 * (OUTPUT + TOLD + state_bytes)
    assert after["to_device"] == before["to_device"]


def test_sessions_beyond_the_slots_come_from_the_store_again(cuda, state_bytes: int):
    server, log, metrics = cuda("--slots", "4")
    names = [f"s{number}" for number in range(12)]
    with Client(server.address) as client:
        with log.during() as calls:
            for turn in range(5):
                for name in names:
                    client.session("lstm", name).predict(LSTM.draw(turn, 2))
        found = crossed(metrics)
        assert positions(server, names) == [10] * len(names)
    assert found["to_device"] > 0
    assert found["to_device"] % state_bytes == 0
    assert calls.copies("HtoD").count(state_bytes) == found["to_device"] // state_bytes


def test_what_a_killed_server_had_not_written_is_replayed_on_another(cuda):
    (first, *_), (second, *_) = cuda(*LATE), cuda(*LATE)
    names, xs = [f"s{number}" for number in range(8)], LSTM.draw(1, 30)
    with (
        Client([first.address, second.address]) as client,
        client.stream("lstm", durability="checkpointed") as stream,
    ):
        for turn, x in enumerate(xs):
            if turn == 20:
                first.kill()
                assert max(positions(second, names)) < 20
            for _, y in stream.map((name, x) for name in names):
                assert not np.any(y)
    assert positions(second, names) == [30] * len(names)
