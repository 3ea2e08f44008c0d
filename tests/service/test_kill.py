"""Killed, stopped and suspended processes: nothing acknowledged is lost, nothing is applied twice."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from recurra.wire.errors import Behind, DeadlineExceeded, Draining, RecurraError, SessionNotFound
from tests.conftest import StartServer
from tests.service.caller import Caller, FrameReply, Reply, new_id
from tests.service.processes import ServerProcess, ValkeyProcess, eventually
from tests.service.zoo import CLOSE, MODELS

LSTM, CELL = MODELS["lstm"], MODELS["cell"]
FREQUENT = os.sysconf("SC_CLK_TCK")


def kill_server(server: ServerProcess) -> None:
    server.kill()
    server.start()


def kill_store(server: ServerProcess) -> None:
    os.kill(server.store_pid, signal.SIGKILL)


def kill_both(server: ServerProcess) -> None:
    store = server.store_pid
    server.kill()
    os.kill(store, signal.SIGKILL)
    server.start()


def fill_disk(server: ServerProcess) -> None:
    """The store's file grows no more: what it cannot write ends it, and the server starts another one."""
    store = server.store_pid
    size = max(file.stat().st_size for file in Path(server.store_socket).parent.glob("appendonlydir/*.incr.aof"))
    resource.prlimit(store, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


KILLS = [kill_server, kill_store, kill_both, fill_disk]


@pytest.mark.parametrize("kill", KILLS)
def test_clients_that_retry_see_nothing_of_a_kill(start_server: StartServer, kill: Callable[[ServerProcess], None]):
    """Each operation is named once and sent until it is answered: every answer is the oracle's, however often."""
    server, sessions, timesteps = start_server(), 6, 120
    acknowledged = [0] * sessions

    def client(row: int) -> None:
        x, last, expire, got = LSTM.draw(row, timesteps), b"", None, []
        for t in range(timesteps):
            identity = new_id()
            reply = insist(server, f"s{row}", x[t : t + 1], id=identity, after=last, expire=expire)
            assert reply.position == t + 1
            last, expire = identity, reply.session.expire_time
            acknowledged[row] += 1
            got.append(reply.y)
        np.testing.assert_allclose(np.concatenate(got), LSTM.whole(x), **CLOSE)

    with ThreadPoolExecutor(sessions) as threads:
        clients = [threads.submit(client, row) for row in range(sessions)]
        for share in (0.2, 0.6):
            eventually(lambda share=share: min(acknowledged) > share * timesteps)
            assert min(acknowledged) < timesteps
            kill(server)
        for each in clients:
            each.result()


def insist(server: ServerProcess, session: str, x: NDArray[Any], **named: Any) -> Reply:
    """Send one operation until it is answered, wherever the server is by now."""
    for _ in range(2000):
        with Caller(server.address) as caller:
            try:
                return caller.predict("lstm", session, x, **named)
            except RecurraError as error:
                if not error.retryable:
                    raise
    raise AssertionError("never answered")


@pytest.mark.parametrize("kill", KILLS)
def test_what_frames_in_flight_were_acknowledged_is_there_after_a_kill(
    start_server: StartServer, kill: Callable[[ServerProcess], None]
):
    server, rows, frames = start_server(), 8, 50
    x = np.stack([LSTM.draw(row, frames) for row in range(rows)])
    want = np.stack([LSTM.whole(each) for each in x])
    ids = [[new_id() for _ in range(rows)] for _ in range(frames)]
    names = [f"s{row}" for row in range(rows)]
    acknowledged = np.full(rows, -1)
    with Caller(server.address) as caller, caller.stream("lstm", names) as stream:
        for t in range(frames):
            stream.send(range(rows), x[:, t : t + 1], tag=t, ids=ids[t], afters=ids[t - 1] if t else [])
            if t == frames // 2:
                first = stream.reply()
                assert first.errors == {}
        replies = [first, *answers(stream, frames - 1, kill, server)]
    for reply in replies:
        good = [row for row in range(rows) if row not in reply.errors]
        if good:
            np.testing.assert_allclose(reply.y[good, 0], want[good, reply.tag], **CLOSE)
        acknowledged[good] = np.maximum(acknowledged[good], reply.tag)
    with Caller(server.address) as caller:
        for row, name in enumerate(names):
            eventually(lambda name=name: stands(caller, name) is not None)
            applied = [each[row] for each in ids].index(stands(caller, name))
            assert applied >= acknowledged[row]
            again = caller.predict("lstm", name, x[row, applied : applied + 1], **named(ids, row, applied))
            np.testing.assert_allclose(again.y, want[row, applied : applied + 1], **CLOSE)
            for t in range(applied + 1, frames):
                reply = caller.predict("lstm", name, x[row, t : t + 1], **named(ids, row, t))
                np.testing.assert_allclose(reply.y, want[row, t : t + 1], **CLOSE)
            assert caller.get("lstm", name).position == frames


def answers(
    stream: Any, most: int, kill: Callable[[ServerProcess], None], server: ServerProcess
) -> Iterator[FrameReply]:
    """What is still answered when there is a kill, until there is no more."""
    for number in range(most):
        if number == 3:
            kill(server)
        try:
            yield stream.reply()
        except RecurraError:
            return


def named(ids: list[list[bytes]], row: int, t: int) -> dict[str, bytes]:
    """An operation as the frame named it: there the input's digest is the frame's too."""
    return {"id": ids[t][row], "after": ids[t - 1][row] if t else b""}


def stands(caller: Caller, name: str) -> bytes | None:
    """The last operation; None while the store is away."""
    try:
        return caller.get("lstm", name).last_id
    except RecurraError as error:
        if not error.retryable:
            raise
        return None


@pytest.mark.parametrize("kill", KILLS)
def test_sessions_resets_and_ends_outlive_a_kill(start_server: StartServer, kill: Callable[[ServerProcess], None]):
    server, x = start_server(), LSTM.draw(0, 5)
    with Caller(server.address) as caller:
        for name in ("kept", "reset", "ended"):
            caller.predict("lstm", name, x)
        caller.reset("lstm", "reset")
        ended = caller.end("lstm", "ended")
        kept = caller.get("lstm", "kept")
    kill(server)
    with Caller(server.address) as caller:
        eventually(lambda: stands(caller, "kept") is not None)
        assert caller.get("lstm", "kept") == kept
        np.testing.assert_allclose(caller.predict("lstm", "kept", x).y, LSTM.whole(x, x)[5:], **CLOSE)
        np.testing.assert_allclose(caller.predict("lstm", "reset", x).y, LSTM.whole(x), **CLOSE)
        assert caller.end("lstm", "ended", id=ended.last_id) == ended


def test_a_killed_servers_store_is_used_again(start_server: StartServer):
    server = start_server()
    store = server.store_pid
    kill_server(server)
    assert server.store_pid == store


def test_two_servers_never_share_a_data_folder(start_server: StartServer, tmp_path: Path):
    start_server(data=tmp_path / "data")
    with pytest.raises(AssertionError, match=r"recurra serve: \S+ is in use by"):
        start_server(data=tmp_path / "data")


def test_clients_that_alternate_between_two_servers_at_every_call(start_server: StartServer, valkey: ValkeyProcess):
    servers = [start_server(store=valkey.url) for _ in range(2)]
    with Caller(servers[0].address) as one, Caller(servers[1].address) as two:

        def client(row: int) -> None:
            x, last, got = LSTM.draw(row, 40), b"", []
            for t in range(40):
                reply = (one, two)[(row + t) % 2].predict("lstm", f"s{row}", x[t : t + 1], after=last)
                last = reply.id
                got.append(reply.y)
            np.testing.assert_allclose(np.concatenate(got), LSTM.whole(x), **CLOSE)

        with ThreadPoolExecutor(6) as threads:
            list(threads.map(client, range(6)))


def test_frames_that_alternate_between_two_servers(start_server: StartServer, valkey: ValkeyProcess):
    servers = [start_server(store=valkey.url) for _ in range(2)]
    names, x = [f"s{row}" for row in range(10)], np.stack([LSTM.draw(row, 30) for row in range(10)])
    with (
        Caller(servers[0].address) as one,
        Caller(servers[1].address) as two,
        one.stream("lstm", names) as first,
        two.stream("lstm", names) as second,
    ):
        afters: list[bytes] = []
        got = []
        for t in range(30):
            ids = [new_id() for _ in names]
            reply = (first, second)[t % 2].ask(range(10), x[:, t : t + 1], ids=ids, afters=afters)
            assert reply.errors == {}
            got.append(reply.y)
            afters = ids
    np.testing.assert_allclose(np.concatenate(got, 1), np.stack([LSTM.whole(each) for each in x]), **CLOSE)


def test_a_server_told_to_stop_answers_what_it_has_taken(start_server: StartServer, tmp_path: Path):
    server = start_server(data=tmp_path / "data")
    x = CELL.draw(0, 300)
    names = [f"s{row}" for row in range(16)]
    with Caller(server.address) as caller, caller.stream("cell", names) as stream:
        for t in range(40):
            stream.send(range(16), np.stack([x] * 16), tag=t, return_sequences=False)
        replies = [stream.reply()]
        server.signal(signal.SIGTERM)
        with pytest.raises(Draining):
            replies.extend(stream.replies())
        assert server.wait() == 0
    assert [reply.tag for reply in replies] == list(range(len(replies)))
    applied = [reply for reply in replies if reply.refused is None]
    for reply in replies:
        assert not reply.errors
        assert reply.refused is None or isinstance(reply.refused, Draining)
    server.start()
    with Caller(server.address) as caller:
        for name in names:
            assert caller.get("cell", name).position == 300 * len(applied)


def test_health_tells_that_a_server_is_stopping_and_it_stops(start_server: StartServer):
    server = start_server()
    with Caller(server.address) as caller:
        watch = health_pb2_grpc.HealthStub(caller.channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
    assert server.wait() == 0
    with pytest.raises(redis.RedisError):  # and its store with it
        _ = server.store_pid


def cpu_seconds(server: ServerProcess) -> float:
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / FREQUENT


@pytest.mark.parametrize("named_after", [True, False])
def test_a_server_suspended_in_mid_run_while_another_advances_never_forks(
    start_server: StartServer, valkey: ValkeyProcess, *, named_after: bool
):
    zombie, other = start_server(store=valkey.url), start_server(store=valkey.url)
    short, long = CELL.draw(0, 5), CELL.draw(1, 30_000)
    with Caller(zombie.address) as one, Caller(other.address) as two:
        first = one.predict("cell", "s", short)
        began = cpu_seconds(zombie)
        after = first.id if named_after else b""
        pending = one.send("cell", "s", long, after=after, return_sequences=False)
        eventually(lambda: cpu_seconds(zombie) > began + 0.05)
        zombie.signal(signal.SIGSTOP)
        assert not pending.call.done()
        second = two.predict("cell", "s", short, after=first.id)
        np.testing.assert_allclose(second.y, CELL.whole(short, short)[5:], **CLOSE)
        zombie.signal(signal.SIGCONT)
        outcome = pending.outcome()
        if named_after:
            assert isinstance(outcome, Behind)
            assert (outcome.last_id, outcome.position) == (second.id, 10)
            third = two.predict("cell", "s", short, after=second.id)
            np.testing.assert_allclose(third.y, CELL.whole(short, short, short)[10:], **CLOSE)
        else:  # it continues whatever is there: now what the other one left
            assert isinstance(outcome, Reply)
            assert outcome.position == 30_010
            np.testing.assert_allclose(outcome.y, CELL.whole(short, short, long)[-1], **CLOSE)


def test_a_server_that_wakes_up_with_an_old_copy_never_forks(start_server: StartServer, valkey: ValkeyProcess):
    zombie, other = start_server(store=valkey.url), start_server(store=valkey.url)
    x = LSTM.draw(0, 5)
    with Caller(zombie.address) as one, Caller(other.address) as two:
        first = one.predict("lstm", "s", x)
        zombie.signal(signal.SIGSTOP)
        late = [one.send("lstm", "s", x, after=first.id), one.send("lstm", "s", x)]
        second = two.predict("lstm", "s", x, after=first.id)
        zombie.signal(signal.SIGCONT)
        outcomes = [pending.outcome() for pending in late]
        assert isinstance(outcomes[0], Behind)
        assert isinstance(outcomes[1], Reply)
        np.testing.assert_allclose(outcomes[1].y, LSTM.whole(x, x, x)[10:], **CLOSE)
        assert two.get("lstm", "s").position == 15
        assert second.position == 10


def test_a_suspended_store_delays_and_loses_nothing(start_server: StartServer):
    server, x = start_server("--store-timeout-seconds", "1"), LSTM.draw(0, 5)
    with Caller(server.address) as caller:
        first = caller.predict("lstm", "s", x)
        store, identity = server.store_pid, new_id()
        os.kill(store, signal.SIGSTOP)
        with pytest.raises(RecurraError) as late:
            caller.predict("lstm", "s", x, id=identity, after=first.id)
        assert late.value.retryable
        with pytest.raises(DeadlineExceeded):
            caller.predict("lstm", "s", x, id=identity, after=first.id, timeout=0.3)
        os.kill(store, signal.SIGCONT)
        reply = insist(server, "s", x, id=identity, after=first.id)
        np.testing.assert_allclose(reply.y, LSTM.whole(x, x)[5:], **CLOSE)
        assert caller.get("lstm", "s").position == 10
        with pytest.raises(SessionNotFound):
            caller.get("lstm", "never")
