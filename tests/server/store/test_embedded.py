import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from recurra.server.store import embedded
from recurra.server.store.embedded import DataFolderInUse, EmbeddedStore, EmbeddedStoreError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
async def store(data: Path) -> AsyncIterator[EmbeddedStore]:
    started = await EmbeddedStore.start(data)
    yield started
    await started.stop()


async def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # nothing here to be told by
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def client(store: EmbeddedStore) -> Redis:
    return Redis.from_url(store.url, retry=Retry(NoBackoff(), 0), decode_responses=True)


async def answers(store: EmbeddedStore) -> None:
    """Wait until Valkey serves, after it was killed."""
    async with asyncio.timeout(20), client(store) as redis:
        while True:
            try:
                await redis.ping()
            except RedisError:
                await asyncio.sleep(0.01)
            else:
                return


SERVER = """
import asyncio, sys
from pathlib import Path
from redis.asyncio import Redis
from recurra.server.store.embedded import EmbeddedStore

async def main():
    store = await EmbeddedStore.start(Path(sys.argv[1]), appendfsync=sys.argv[2])
    async with Redis.from_url(store.url) as redis:
        await redis.set("written by", "the killed server")
    print(store.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def left_behind(data: Path, appendfsync: str = "always") -> int:
    """The pid of a Valkey whose server was started, wrote one key and was killed."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(data), appendfsync, stdout=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(30):
            return int(await server.stdout.readline())
    finally:
        server.kill()
        await server.communicate()


async def check_the_killed_servers_write(store: EmbeddedStore) -> None:
    async with client(store) as redis:
        assert await redis.get("written by") == "the killed server"


async def test_it_serves_on_a_private_socket_with_a_synced_file(store, data):
    assert data.stat().st_mode & 0o777 == 0o700
    assert (data / "valkey.sock").stat().st_mode & 0o777 == 0o700
    async with client(store) as redis:
        settings = await redis.config_get("appendonly", "appendfsync", "maxmemory-policy", "port", "save", "dir")
        assert (await redis.info("server"))["process_id"] == store.pid
    assert settings == {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "port": "0",
        "save": "",
        "dir": str(data),
    }
    assert os.getsid(store.pid) == store.pid  # out of reach of the terminal's Ctrl-C


async def test_stop_leaves_nothing_running_and_loses_nothing(data):
    first = await EmbeddedStore.start(data)
    async with client(first) as redis:
        await redis.set("a", "1")
    await first.stop()
    await first.stop()
    assert not alive(first.pid)
    assert not (data / "valkey.sock").exists()
    second = await EmbeddedStore.start(data, appendfsync="everysec")
    try:
        assert second.pid != first.pid
        async with client(second) as redis:
            assert await redis.get("a") == "1"
            assert await redis.config_get("appendfsync") == {"appendfsync": "everysec"}
    finally:
        await second.stop()


async def test_every_acknowledged_write_survives_kill_9_of_valkey_again_and_again(store, caplog):
    acknowledged: list[str] = []

    async def write() -> None:
        async with client(store) as redis:
            while True:
                key = str(len(acknowledged))
                await redis.set(key, "x" * 1000)
                acknowledged.append(key)

    for life in range(1, 4):
        killed = store.pid
        writer = asyncio.create_task(write())
        await eventually(lambda life=life: len(acknowledged) >= 50 * life)
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(RedisError):
            await writer
        await answers(store)
        assert store.pid != killed
        async with client(store) as redis:
            assert await redis.exists(*acknowledged) == len(acknowledged)
    await eventually(lambda: caplog.messages.count("store.restarted") == 3)
    assert not store.lost.is_set()


async def test_a_valkey_left_behind_by_a_killed_server_is_used_again(data):
    pid = await left_behind(data, "everysec")
    assert alive(pid)
    store = await EmbeddedStore.start(data)
    try:
        assert store.pid == pid
        await check_the_killed_servers_write(store)
        async with client(store) as redis:
            assert await redis.config_get("appendfsync") == {"appendfsync": "always"}
        os.kill(pid, signal.SIGKILL)  # it is no child of this process, and is watched all the same
        await eventually(lambda: store.pid != pid)
        await answers(store)
        await check_the_killed_servers_write(store)
    finally:
        await store.stop()
    assert not alive(pid)
    assert not alive(store.pid)


async def test_an_adopted_valkey_is_stopped_with_the_server(data):
    pid = await left_behind(data)
    store = await EmbeddedStore.start(data)
    await store.stop()
    assert not alive(pid)


async def test_a_valkey_left_behind_that_does_not_answer_is_replaced(data, monkeypatch):
    monkeypatch.setattr(embedded, "ANSWER_SECONDS", 0.2)
    pid = await left_behind(data)
    os.kill(pid, signal.SIGSTOP)
    store = await EmbeddedStore.start(data)
    try:
        assert store.pid != pid
        assert not alive(pid)
        await check_the_killed_servers_write(store)
    finally:
        await store.stop()


async def test_a_valkey_left_behind_is_found_without_its_socket(data, monkeypatch):
    monkeypatch.setattr(embedded, "ANSWER_SECONDS", 0.2)
    pid = await left_behind(data)
    (data / "valkey.sock").unlink()
    store = await EmbeddedStore.start(data)
    try:
        assert not alive(pid)
        await check_the_killed_servers_write(store)
    finally:
        await store.stop()


async def test_a_valkey_left_behind_is_found_in_a_folder_that_moved(data):
    pid = await left_behind(data)
    moved = data.rename(data.with_name("moved"))
    store = await EmbeddedStore.start(moved)
    try:
        assert store.pid == pid
        await check_the_killed_servers_write(store)
    finally:
        await store.stop()
    assert not alive(pid)


async def test_the_valkey_of_another_folder_of_the_same_name_is_not_used(tmp_path):
    data = tmp_path / ("long" * 40)  # its socket is elsewhere, so it answers when the folder is gone
    pid = await left_behind(data)
    data.rename(tmp_path / "moved")
    store = await EmbeddedStore.start(data)
    try:
        assert not alive(pid)
        async with client(store) as redis:
            assert await redis.dbsize() == 0
    finally:
        await store.stop()


async def test_two_servers_never_own_one_folder(store, data):
    with pytest.raises(DataFolderInUse, match=f"in use by another server, process {os.getpid()}") as refused:
        await EmbeddedStore.start(data)
    assert refused.value.folder == data
    assert refused.value.owner == os.getpid()
    await answers(store)


async def test_two_folders_are_served_at_once(store, tmp_path):
    other = await EmbeddedStore.start(tmp_path / "other")
    try:
        async with client(store) as one, client(other) as two:
            await one.set("a", "1")
            assert await two.get("a") is None
    finally:
        await other.stop()
    await answers(store)


async def test_a_long_or_odd_path_works(tmp_path):
    for folder in (tmp_path / ("long" * 40), tmp_path / "what? a #%41 'q\" ü"):
        store = await EmbeddedStore.start(folder)
        try:
            socket = store._socket
            assert socket.parent.stat().st_mode & 0o777 == 0o700
            await answers(store)
            killed = store.pid
            os.kill(killed, signal.SIGKILL)
            await eventually(lambda store=store, killed=killed: store.pid != killed)
            await answers(store)
        finally:
            await store.stop()
        assert not socket.exists()
        assert socket.parent == folder or not socket.parent.exists()


async def test_somebody_elses_socket_folder_is_refused(tmp_path):
    folder = tmp_path / ("long" * 40)
    trap = embedded._socket_path(folder).parent
    try:
        trap.chmod(0o777)
        with pytest.raises(EmbeddedStoreError, match="not a private folder"):
            await EmbeddedStore.start(folder)
    finally:
        trap.rmdir()


async def test_a_process_that_is_no_valkey_of_the_folder_is_left_alone(data):
    data.mkdir()
    (data / "valkey.sock").write_text("stale")
    bystander = subprocess.Popen(["sleep", "600"], cwd=data)  # noqa: ASYNC220
    try:
        store = await EmbeddedStore.start(data)
        await store.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


async def test_a_file_that_cannot_be_loaded_is_told_with_valkeys_log(data):
    (data / "appendonlydir").mkdir(parents=True)
    (data / "appendonlydir" / "appendonly.aof.manifest").write_text("garbage\n")
    with pytest.raises(EmbeddedStoreError, match=r"ended with status 1; the end of .*valkey\.log:(.|\n)*garbage"):
        await EmbeddedStore.start(data)
    (data / "appendonlydir" / "appendonly.aof.manifest").unlink()
    store = await EmbeddedStore.start(data)  # the folder was let go
    await store.stop()


async def test_a_file_cut_short_is_loaded_up_to_the_cut(data):
    first = await EmbeddedStore.start(data)
    async with client(first) as redis:
        await redis.set("a", "1")
        await redis.set("b", "2")
    await first.stop()
    file = next((data / "appendonlydir").glob("*.incr.aof"))
    os.truncate(file, file.stat().st_size - 3)
    second = await EmbeddedStore.start(data)
    try:
        async with client(second) as redis:
            assert await redis.mget("a", "b") == ["1", None]
    finally:
        await second.stop()


async def test_a_valkey_that_keeps_dying_is_given_up(store, monkeypatch):
    monkeypatch.setattr(embedded, "MAX_QUICK_FAILURES", 3)
    monkeypatch.setattr(embedded, "_command", lambda *_: ["false"])
    os.kill(store.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        await store.lost.wait()


async def test_a_start_that_is_cancelled_leaves_nothing(data, monkeypatch):
    monkeypatch.setattr(embedded, "_command", lambda *_: ["sleep", "600"])
    started: list[int] = []
    of_child = embedded._Process.of_child
    monkeypatch.setattr(embedded._Process, "of_child", lambda child: started.append(child.pid) or of_child(child))
    start = asyncio.create_task(EmbeddedStore.start(data))
    await eventually(lambda: bool(started))
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not alive(started[0])
    os.close(embedded._own(data)[1])


async def test_a_data_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedStoreError, match="cannot be used"):
        await EmbeddedStore.start(tmp_path / "file")


async def test_a_valkey_that_cannot_be_run_is_told(data, monkeypatch):
    monkeypatch.setattr(embedded, "_command", lambda *_: ["/no/such/valkey-server"])
    with pytest.raises(EmbeddedStoreError, match="Valkey cannot be started"):
        await EmbeddedStore.start(data)


async def test_a_kernel_without_pidfds_is_told_and_nothing_is_left(data, monkeypatch):
    def refuse(pid: int) -> int:
        raise PermissionError(pid)

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(EmbeddedStoreError, match="Valkey cannot be started"):
        await EmbeddedStore.start(data)
    assert embedded._valkeys(data) == []
