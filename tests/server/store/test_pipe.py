import asyncio
import os
import signal

import hiredis
import pytest

from recurra.server.store.address import primary
from recurra.server.store.pipe import Pipe
from recurra.wire.errors import StoreUnavailable
from tests.proxy import Proxy

LONG, SHORT = 20, 0.3


@pytest.fixture
async def pipes():
    opened: list[Pipe] = []

    def make(url: str, *, timeout_seconds: float = LONG, **more) -> Pipe:
        opened.append(Pipe(primary(url, timeout_seconds).pool, timeout_seconds=timeout_seconds, **more))
        return opened[-1]

    yield make
    for pipe in opened:
        await pipe.close()


def echo(pipe: Pipe, *words: str) -> asyncio.Future[list[bytes]]:
    """One batch that answers with its own words."""
    return pipe.send(b"".join(hiredis.pack_command(("ECHO", word)) for word in words), len(words))


def words(batch: int, count: int) -> list[str]:
    return [f"{batch}.{at}" for at in range(count)]


def said(words: list[str]) -> list[bytes]:
    return [word.encode() for word in words]


async def test_many_batches_in_flight_are_answered_each_with_its_own(pipes, valkey):
    pipe = pipes(valkey.url)
    sizes = [1 + 7 * at % 50 for at in range(400)]
    order: list[int] = []
    flights = [echo(pipe, *words(at, size)) for at, size in enumerate(sizes)]
    for at, flight in enumerate(flights):
        flight.add_done_callback(lambda _, at=at: order.append(at))
    answers = await asyncio.gather(*flights)
    assert answers == [said(words(at, size)) for at, size in enumerate(sizes)]
    assert order == list(range(400))


async def test_replies_larger_than_a_read_come_whole(pipes, valkey):
    pipe = pipes(valkey.url)
    big = "x" * (3 << 20)
    first, second = echo(pipe, big, "small"), echo(pipe, "after")
    assert await first == said([big, "small"])
    assert await second == [b"after"]


async def test_an_error_is_the_reply_of_its_own_command(pipes, valkey):
    pipe = pipes(valkey.url)
    wire = b"".join(hiredis.pack_command(command) for command in [("ECHO", "a"), ("NO-SUCH",), ("ECHO", "b")])
    before, error, after = await pipe.send(wire, 3)
    assert (before, after) == (b"a", b"b")
    assert isinstance(error, hiredis.ReplyError)
    assert await echo(pipe, "next") == [b"next"]


async def test_the_opening_command_is_sent_on_each_connection_and_its_reply_is_nobodys(pipes, valkey, redis):
    pipe = pipes(valkey.url, opening=[(b"CLIENT", b"SETNAME", b"pipe")])
    for _ in range(3):
        assert (await pipe.command("CLIENT", "GETNAME"))[0] == b"pipe"
        assert await echo(pipe, "a", "b") == [b"a", b"b"]
        await redis.client_kill_filter(_type="normal", skipme=True)


async def test_what_was_cut_off_is_sent_again(pipes, valkey, redis, stuck):
    pipe = pipes(valkey.url)
    await echo(pipe, "there")
    for round_ in range(5):
        with stuck():
            killing = asyncio.create_task(redis.client_kill_filter(_type="normal", skipme=True))
            flights = [echo(pipe, *words(at, round_ + at)) for at in range(1, 20)]
            await asyncio.wait([killing], timeout=0.01)
        await killing
        assert await asyncio.gather(*flights) == [said(words(at, round_ + at)) for at in range(1, 20)]


async def test_a_batch_that_was_cut_off_half_answered_is_answered_whole(pipes, valkey, redis):
    pipe = pipes(valkey.url)
    wire = b"".join(hiredis.pack_command(command) for command in [("ECHO", "a"), ("BLPOP", "k", 0), ("ECHO", "b")])
    answer = pipe.send(wire, 3)
    async with asyncio.timeout(LONG):
        while not pipe._waiting[0].replies:
            await asyncio.wait([answer], timeout=0.01)
        await redis.client_kill_filter(_type="normal", skipme=True)
        while not (await redis.info("clients"))["blocked_clients"]:
            await asyncio.wait([answer], timeout=0.01)
        await redis.rpush("k", "x")
        assert await answer == [b"a", [b"k", b"x"], b"b"]


async def test_kill_9_of_the_store_in_mid_flight_is_survived(pipes, valkey):
    pipe = pipes(valkey.url)
    for round_ in range(2):
        await echo(pipe, "there")
        dead = valkey.pid
        os.kill(dead, signal.SIGSTOP)  # so that the batches are on their way, and unanswered, when it dies
        flights = [echo(pipe, *words(at, 1 + at)) for at in range(30)]
        os.kill(dead, signal.SIGKILL)
        async with asyncio.timeout(LONG):
            assert await asyncio.gather(*flights) == [said(words(at, 1 + at)) for at in range(30)], round_
        assert valkey.pid != dead


async def test_a_store_that_still_reads_its_file_is_waited_for(pipes, valkey, redis):
    fill = "for at = 1, 300000 do redis.call('SET', 'k' .. at, 'v') end"
    await redis.eval(fill, 0)
    pipe = pipes(valkey.url, opening=[(b"PING",)])
    await echo(pipe, "there")
    os.kill(valkey.pid, signal.SIGKILL)
    async with asyncio.timeout(LONG):
        assert await pipe.command("GET", "k300000") == [b"v"]


async def test_a_stuck_store_fails_the_batch_in_time_and_serves_again_when_it_wakes(pipes, valkey, stuck):
    pipe, clock = pipes(valkey.url, timeout_seconds=SHORT), asyncio.get_running_loop().time
    await echo(pipe, "there")
    for round_ in range(3):
        with stuck():
            began = clock()
            flights = [echo(pipe, *words(at, 1 + at)) for at in range(5)]
            results = await asyncio.gather(*flights, return_exceptions=True)
            assert SHORT <= clock() - began < SHORT + 2
        assert [type(result) for result in results] == [StoreUnavailable] * 5
        assert "did not answer within 0.3 s" in str(results[0])
        # What the store had taken in, it answers now: to nobody.
        assert await asyncio.gather(*(echo(pipe, f"{round_} {at}") for at in range(5))) == [
            [f"{round_} {at}".encode()] for at in range(5)
        ]


async def test_replies_are_not_mixed_up_where_a_batch_was_given_up_and_the_next_was_not(pipes, valkey, stuck):
    pipe = pipes(valkey.url, timeout_seconds=SHORT)
    await echo(pipe, "there")
    with stuck():
        given_up = echo(pipe, "a", "b", "c")
        await asyncio.wait([given_up], timeout=SHORT * 0.8)
        still_wanted = echo(pipe, "d", "e")
        with pytest.raises(StoreUnavailable):
            await given_up
        assert not still_wanted.done()
    assert await still_wanted == [b"d", b"e"]


async def test_a_slow_store_that_still_answers_keeps_its_connection(pipes, valkey, redis):
    pipe = pipes(valkey.url, timeout_seconds=2 * SHORT)
    before = await pipe.command("CLIENT", "ID")
    first, second = (pipe.command("BLPOP", key, 0) for key in ("first", "second"))
    await asyncio.wait([second], timeout=SHORT)
    await redis.rpush("first", "x")
    assert await first == [[b"first", b"x"]]
    with pytest.raises(StoreUnavailable):
        await second
    after = echo(pipe, "a", "b")
    await redis.rpush("second", "x")  # its reply comes now, to nobody
    assert await after == [b"a", b"b"]
    assert await pipe.command("CLIENT", "ID") == before


async def test_a_connection_that_loses_its_replies_is_replaced(pipes, valkey, tmp_path):
    async with Proxy(valkey.url.removeprefix("unix://")).laid(f"{tmp_path}/net.sock") as net:
        pipe = pipes(f"unix://{net.address}", timeout_seconds=SHORT)
        assert await echo(pipe, "a") == [b"a"]
        net.lose_replies()
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await echo(pipe, "b")
        async with asyncio.timeout(LONG):
            assert await echo(pipe, "c") == [b"c"]


async def test_a_batch_whose_caller_went_away_keeps_its_place(pipes, valkey):
    pipe = pipes(valkey.url)
    flights = [echo(pipe, str(at)) for at in range(9)]
    for flight in flights[::2]:
        flight.cancel()
    assert await asyncio.gather(*flights[1::2]) == [[str(at).encode()] for at in range(1, 9, 2)]
    assert await echo(pipe, "after") == [b"after"]


async def test_a_store_that_is_not_there_is_unavailable_after_the_timeout(pipes, tmp_path):
    pipe, clock = pipes(f"unix://{tmp_path}/nobody.sock", timeout_seconds=SHORT), asyncio.get_running_loop().time
    began = clock()
    with pytest.raises(StoreUnavailable, match="did not answer within"):
        await pipe.command("PING")
    assert clock() - began >= SHORT


async def test_a_wrong_password_is_told_at_once(pipes, valkey, redis):
    await redis.config_set("requirepass", "right")
    pipe = pipes(valkey.url.replace("unix://", "unix://:wrong@"))
    async with asyncio.timeout(LONG / 2):
        with pytest.raises(StoreUnavailable, match="password"):
            await pipe.command("PING")
    right = pipes(valkey.url.replace("unix://", "unix://:right@"))
    assert await right.command("PING") == [b"PONG"]


async def test_a_store_that_is_stuck_when_it_is_to_check_the_password_is_given_up_in_time(pipes, valkey, redis, stuck):
    await redis.config_set("requirepass", "right")
    pipe = pipes(valkey.url.replace("unix://", "unix://:right@"), timeout_seconds=SHORT)
    with stuck():
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await pipe.command("PING")
    assert await pipe.command("PING") == [b"PONG"]


async def test_something_that_is_no_store_is_unavailable_and_is_tried_again(pipes, tmp_path):
    asked = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        if await reader.read(1):
            asked += 1
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_unix_server(talk, tmp_path / "web.sock"):
        pipe = pipes(f"unix://{tmp_path}/web.sock", timeout_seconds=SHORT)
        for _ in range(2):
            before = asked
            with pytest.raises(StoreUnavailable, match="Protocol error"):
                await pipe.command("PING")
            assert asked > before


async def test_closing_fails_what_is_unanswered(pipes, valkey, stuck):
    pipe = pipes(valkey.url)
    await echo(pipe, "there")
    with stuck():
        flights = [echo(pipe, "a"), echo(pipe, "b")]
        await pipe.close()
        results = await asyncio.gather(*flights, return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable] * 2


async def test_a_failure_that_nobody_waits_for_is_no_fault(pipes, tmp_path):
    failures: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    pipe = pipes(f"unix://{tmp_path}/nobody.sock", timeout_seconds=0.05)
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(asyncio.shield(pipe.command("PING")), 5)
    forgotten = pipe.command("PING")
    await asyncio.wait([forgotten])
    del forgotten
    await pipe.close()
    assert failures == []
