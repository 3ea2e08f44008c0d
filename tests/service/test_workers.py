"""Several workers on one port: which of them a connection comes to changes nothing."""

from __future__ import annotations

import operator
import os
import re
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from recurra.client import Client
from recurra.models import choose
from recurra.v1 import inference_pb2
from recurra.wire.errors import Draining, ModelUnavailable
from tests.conftest import StartServer
from tests.service.caller import Caller, frame
from tests.service.processes import ServerProcess, ValkeyProcess, eventually
from tests.service.zoo import CLOSE, MODELS

without_gpu = pytest.mark.skipif(choose("auto").provider != "cpu", reason="there is a GPU")

LSTM, CELL = MODELS["lstm"], MODELS["cell"]
TWO = ("--workers", "2")
IMPATIENT = ("--store-timeout-seconds", "0.5")
ESTABLISHED = "01"


@pytest.fixture(scope="module")
def pair(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Two workers, for the tests that leave them as they were."""
    process = ServerProcess(repository, tmp_path_factory.mktemp("data"), *TWO, "--cache", "off")
    try:
        yield process.start()
    finally:
        process.close()


def environment(pid: int) -> dict[str, str]:
    """The variables that a process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


def workers(server: ServerProcess) -> dict[int, int]:
    """Each worker's process by its number, the last one that was ready."""
    return {int(number): int(pid) for number, pid in re.findall(r"worker\.ready worker=(\d+) pid=(\d+)", server.log)}


def gone(pid: int) -> bool:
    """Whether the process is no more; what nobody has reaped yet is."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def connections(pid: int) -> set[str]:
    """The TCP connections that a process holds."""
    held = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held.add(str(entry.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables for row in table]
    return {row[2] for row in rows if row[3] == ESTABLISHED and f"socket:[{row[9]}]" in held}


def one_each(server: ServerProcess, stack: ExitStack) -> list[Caller]:
    """A client on each worker, by the workers' numbers. The kernel chooses, so more connect until there is one."""
    pids, found = [pid for _, pid in sorted(workers(server).items())], dict[int, Caller]()
    for _ in range(100):
        if len(found) == len(pids):
            break
        before = [connections(pid) for pid in pids]
        caller = stack.enter_context(Caller(server.address))
        caller.model("lstm")
        for pid, were in zip(pids, before, strict=True):
            if connections(pid) - were:
                found.setdefault(pid, caller)
    return [found[pid] for pid in pids]


def test_sessions_that_change_the_worker_at_every_step_equal_the_oracle(pair: ServerProcess):
    rows, timesteps = 6, 30
    x = np.stack([LSTM.draw(row, timesteps) for row in range(rows)])
    with ExitStack() as stack:
        callers = one_each(pair, stack)

        def client(row: int) -> None:
            last, got = b"", []
            for t in range(timesteps):
                reply = callers[(row + t) % 2].predict("lstm", f"call {row}", x[row, t : t + 1], after=last)
                last = reply.id
                got.append(reply.y)
            np.testing.assert_allclose(np.concatenate(got), LSTM.whole(x[row]), **CLOSE)

        with ThreadPoolExecutor(rows) as threads:
            list(threads.map(client, range(rows)))

        streams = [
            stack.enter_context(each.stream("lstm", [f"frame {row}" for row in range(rows)])) for each in callers
        ]
        frames = [streams[t % 2].ask(range(rows), x[:, t : t + 1]) for t in range(timesteps)]
        assert not any(frame.errors for frame in frames)
        got = np.concatenate([frame.y for frame in frames], 1)
        np.testing.assert_allclose(got, np.stack([LSTM.whole(each) for each in x]), **CLOSE)


def test_each_worker_is_a_whole_server_and_a_model_is_tried_once(pair: ServerProcess):
    with ExitStack() as stack:
        for caller in one_each(pair, stack):
            assert "recurra.v1.InferenceService" in ProtoReflectionDescriptorDatabase(caller.channel).get_services()
            health = health_pb2_grpc.HealthStub(caller.channel).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(ModelUnavailable, match="could not be loaded: "):
                caller.predict("broken", "", LSTM.draw(0, 1))
    assert pair.log.count("model.refused") == 1
    for number in (1, 2):
        assert f" model.loaded worker={number} model=lstm " in pair.log


def test_clients_see_nothing_of_a_killed_worker_and_it_comes_back(start_server: StartServer):
    """The SDK sends again what was not answered: every answer is the oracle's, no step is lost or counted twice."""
    server, rows, enough = start_server(*TWO), 6, threading.Event()
    done = [0] * rows

    def client(row: int) -> None:
        x, got = LSTM.draw(row, 20_000), []
        with Client(server.address) as client:
            session = client.session("lstm", f"s{row}")
            while not enough.is_set():
                got.append(session.predict(x[len(got) : len(got) + 1]))
                done[row] += 1
        np.testing.assert_allclose(np.concatenate(got), LSTM.whole(x[: len(got)]), **CLOSE)

    with ThreadPoolExecutor(rows) as threads:
        clients = [threads.submit(client, row) for row in range(rows)]
        try:
            for number in (1, 2, 1):
                more, pid = [each + 20 for each in done], workers(server)[number]
                eventually(lambda more=more: all(map(operator.ge, done, more)))
                os.kill(pid, signal.SIGKILL)
                eventually(lambda pid=pid, number=number: workers(server)[number] != pid, 60)
        finally:
            enough.set()
        for each in clients:
            each.result()
    assert server.log.count("worker.died") == 3
    with ExitStack() as stack:
        for caller in one_each(server, stack):
            assert [caller.get("lstm", f"s{row}").position for row in range(rows)] == done


def test_workers_told_to_stop_answer_what_they_have_taken(start_server: StartServer, tmp_path: Path):
    server, x = start_server(*TWO, "--drain-seconds", "60", data=tmp_path / "data"), CELL.draw(0, 100)
    pids = [*workers(server).values(), server.store_pid]
    with ExitStack() as stack:
        callers = one_each(server, stack)
        names = [[f"worker {at} row {row}" for row in range(16)] for at in range(2)]
        streams = [stack.enter_context(each.stream("cell", names[at])) for at, each in enumerate(callers)]
        for t in range(10):
            for stream in streams:
                stream.send(range(16), np.stack([x] * 16), tag=t, return_sequences=False)
        replies = [[stream.reply()] for stream in streams]
        server.signal(signal.SIGTERM)
        for at, stream in enumerate(streams):
            with pytest.raises(Draining):
                replies[at].extend(stream.replies())
        assert server.wait(90) == 0
    assert all(map(gone, pids))
    assert "killed" not in server.log
    server.start()
    with Caller(server.address) as caller:
        for at, of_one in enumerate(replies):
            assert [reply.tag for reply in of_one] == list(range(len(of_one)))
            assert all(reply.refused is None or isinstance(reply.refused, Draining) for reply in of_one)
            applied = sum(reply.refused is None for reply in of_one)
            for name in names[at]:
                assert caller.get("cell", name).position == 100 * applied


def test_workers_told_to_stop_write_what_they_have_only_computed(start_server: StartServer, tmp_path: Path):
    server = start_server(*TWO, "--checkpoint-seconds", "3600", data=tmp_path / "data")
    x = np.stack([LSTM.draw(row, 5) for row in range(4)])
    names = [[f"worker {at} row {row}" for row in range(4)] for at in range(2)]
    with ExitStack() as stack:
        for at, caller in enumerate(one_each(server, stack)):
            stream = stack.enter_context(caller.stream("lstm", names[at]))
            sent = frame(range(4), x)
            sent.options.durability = inference_pb2.DURABILITY_CHECKPOINTED
            stream.put(frame=sent)
            reply = stream.reply()
            assert (reply.positions, any(reply.raw.durable_positions)) == ([5] * 4, False)
        assert server.stop() == 0
    server.start()
    with Caller(server.address) as caller:
        assert [caller.get("lstm", name).position for of_one in names for name in of_one] == [5] * 8


@pytest.mark.parametrize("suspended", [False, True])
def test_a_killed_parent_leaves_no_process_and_loses_nothing(start_server: StartServer, *, suspended: bool):
    server, x = start_server(*TWO), LSTM.draw(0, 6)
    with Caller(server.address) as caller:
        caller.predict("lstm", "s", x[:3])
    pids = [*workers(server).values(), server.store_pid]
    if suspended:
        os.kill(pids[0], signal.SIGSTOP)
    server.kill()
    eventually(lambda: all(map(gone, pids)))
    server.start()
    with Caller(server.address) as caller:
        np.testing.assert_allclose(caller.predict("lstm", "s", x[3:]).y, LSTM.whole(x)[3:], **CLOSE)


def test_a_suspended_worker_is_killed_at_the_end(start_server: StartServer):
    server = start_server(*TWO, "--drain-seconds", "0.1")
    pids = [workers(server)[1], workers(server)[2], server.store_pid]
    os.kill(pids[0], signal.SIGSTOP)
    assert server.stop() == 0
    assert all(map(gone, pids))
    assert "worker.killed worker=1" in server.log


@pytest.mark.parametrize("flags", [(), TWO])
def test_the_port_of_workers_is_refused_to_another_server(
    pair: ServerProcess, start_server: StartServer, flags: tuple[str, ...]
):
    with pytest.raises(AssertionError, match="recurra serve: .*" + re.escape(pair.address)):
        start_server(*flags, "--listen", pair.address)


def test_workers_do_not_share_a_port_of_anybody_else(start_server: StartServer):
    with closing(socket.socket()) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(AssertionError, match=f"recurra serve: cannot listen on {address}: .*in use"):
            start_server(*TWO, "--listen", address)


def scraper(server: ServerProcess) -> Callable[[str], float]:
    """Reads a metric at the server's one address."""
    [address] = re.findall(r"metrics\.ready address=(\S+)", server.log)

    def value(name: str) -> float:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as reply:
            [found] = re.findall(rf"^{re.escape(name)} (\S+)$", reply.read().decode(), re.MULTILINE)
        return float(found)

    return value


def test_metrics_add_up_over_workers_and_outlive_them(start_server: StartServer):
    server = start_server(*TWO, "--metrics", "127.0.0.1:0")
    value, x = scraper(server), LSTM.draw(0, 4)
    timesteps, live = 'recurra_timesteps_total{model="lstm"}', 'recurra_live_sessions{model="lstm"}'
    calls = 'recurra_requests_total{code="OK",method="Predict"}'
    batches = 'recurra_batch_size_count{model="lstm"}'
    with ExitStack() as stack:
        for at, caller in enumerate(one_each(server, stack)):
            for _ in range(2 + at):
                caller.predict("lstm", f"s{at}", x)
    assert [value(name) for name in (timesteps, calls, batches, live)] == [20, 5, 5, 2]
    assert value("process_cpu_seconds_total") > 0
    pid = workers(server)[1]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: workers(server)[1] != pid, 60)
    assert [value(name) for name in (timesteps, calls, batches, live)] == [20, 5, 5, 1]


@without_gpu
def test_each_worker_sees_its_own_device_and_so_does_the_one_that_comes_after_it(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
):
    """Where there is no GPU they serve on the CPU, which the parent found, all the same."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5d,6")
    server = start_server("--devices", "2,1", "--workers", "3", "--metrics", "127.0.0.1:0")
    value, expected = scraper(server), {1: "6", 2: "GPU-5d", 3: "6"}
    up = {number: f'recurra_worker_up{{device="{device}",worker="{number}"}}' for number, device in expected.items()}

    def seen() -> dict[int, tuple[str, str]]:
        told = {number: environment(pid) for number, pid in workers(server).items()}
        return {number: (each["CUDA_VISIBLE_DEVICES"], each["RECURRA_PROVIDER"]) for number, each in told.items()}

    before, pids = {number: (device, "cpu") for number, device in expected.items()}, workers(server)
    assert seen() == before
    assert {number: value(name) for number, name in up.items()} == dict.fromkeys(expected, 1)
    os.kill(pids[2], signal.SIGKILL)
    eventually(lambda: workers(server)[2] != pids[2], 60)
    assert seen() == before
    assert re.search(rf"worker\.died worker=2 pid={pids[2]} status=-9 quick_failures=\d device=GPU-5d\n", server.log)
    for number, pid in workers(server).items():
        assert f"worker.ready worker={number} pid={pid} device={expected[number]}\n" in server.log
    assert value(up[2]) == 1
    assert environment(server.store_pid)["CUDA_VISIBLE_DEVICES"] == "6"  # as any other child of the parent: the trials


@without_gpu
def test_one_device_is_one_process_that_sees_it_alone(start_server: StartServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    server = start_server("--devices", "3")
    assert "worker.ready" not in server.log
    assert 'devices.unused devices=3 reason="no GPU can be used: ' in server.log
    assert environment(server.store_pid)["CUDA_VISIBLE_DEVICES"] == "3"  # what it starts sees what it does


def test_a_worker_that_keeps_dying_ends_the_server(start_server: StartServer, valkey: ValkeyProcess):
    server = start_server(*TWO, *IMPATIENT, store=valkey.url)
    pids = workers(server)
    valkey.close()
    os.kill(pids[1], signal.SIGKILL)
    assert server.wait(120) == 1
    assert all(map(gone, pids.values()))
    assert "recurra serve: worker 1 keeps dying, 5 times in a row; the last with status 1" in server.log


def test_a_worker_that_does_not_start_ends_the_server(start_server: StartServer, tmp_path: Path):
    with pytest.raises(
        AssertionError, match=r"recurra serve: worker \d does not start: it ended with status 1"
    ) as told:
        start_server(*TWO, *IMPATIENT, store=f"unix://{tmp_path}/nothing.sock")
    assert "library.logged" not in str(told.value)
