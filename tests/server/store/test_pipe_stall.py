"""A store that stalls for longer than the pipe's timeout, under steady load: one stall is one stall."""

import asyncio

import hiredis
import pytest

from recurra.server.store.address import primary
from recurra.server.store.pipe import Pipe
from recurra.wire.errors import StoreUnavailable
from tests.proxy import Proxy

TIMEOUT, ONE_WAY = 0.3, 0.002  # seconds


@pytest.fixture
async def wire(valkey, tmp_path):
    async with Proxy(valkey.url.removeprefix("unix://")).laid(f"{tmp_path}/slow.sock") as made:
        made.delay_seconds = ONE_WAY
        yield made


@pytest.fixture
async def pipe(wire):
    made = Pipe(primary(f"unix://{wire.address}", TIMEOUT).pool, timeout_seconds=TIMEOUT)
    yield made
    await made.close()


class Load:
    """Asks the pipe for something every few milliseconds, until told to end."""

    def __init__(self, pipe: Pipe) -> None:
        self.asked: list[tuple[int, asyncio.Future]] = []
        self._pipe = pipe
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._over.done():
            at = len(self.asked)
            words = [f"{at}.{part}" for part in range(1 + at % 3)]
            packed = b"".join(hiredis.pack_command(("ECHO", word)) for word in words)
            self.asked.append((at, self._pipe.send(packed, len(words))))
            await asyncio.wait([self._over], timeout=0.003)

    async def more(self, count: int) -> int:
        """Wait until so many more were asked; answers the number of the first of them."""
        first = len(self.asked)
        async with asyncio.timeout(20):
            while len(self.asked) < first + count:
                await asyncio.wait([self._task], timeout=0.005)
        return first

    async def end(self) -> list[list[bytes] | None]:
        """What each was answered, None for what failed; each is its own answer, or StoreUnavailable."""
        self._over.set_result(None)
        await self._task
        told: list[list[bytes] | None] = []
        for at, answer in self.asked:
            try:
                async with asyncio.timeout(20):
                    replies = await answer
            except StoreUnavailable:
                told.append(None)
                continue
            assert replies == [f"{at}.{part}".encode() for part in range(1 + at % 3)]
            told.append(replies)
        return told


async def stall(wire: Proxy, seconds: float) -> None:
    """Stand still for so long, as a store that swaps or writes its file does."""
    wire.hold()
    asyncio.get_running_loop().call_later(seconds, wire.flow)
    async with asyncio.timeout(20):
        await wire.flows()


async def recovered(load: Load) -> None:
    """Wait until a hundred in a row were answered."""
    async with asyncio.timeout(20):
        first = await load.more(100)
        while failed := [at for at, answer in load.asked[first:] if await _has_failed(answer)]:
            first = failed[-1] + 1
            await load.more(max(1, first + 100 - len(load.asked)))


async def _has_failed(answer: asyncio.Future) -> bool:
    await asyncio.wait([answer])
    return answer.exception() is not None


@pytest.mark.parametrize("timeouts", [0.5, 1.3, 2.5])
async def test_after_a_stall_under_steady_load_everything_is_answered_again(wire, pipe, timeouts):
    load = Load(pipe)
    await load.more(20)
    await stall(wire, timeouts * TIMEOUT)
    await recovered(load)
    told = await load.end()
    assert (None in told) == (timeouts > 1)


async def test_stalls_again_and_again_never_mix_up_replies(wire, pipe):
    load = Load(pipe)
    for timeouts in (0.5, 1.1, 0.9, 1.6):
        await load.more(10)
        await stall(wire, timeouts * TIMEOUT)
    await recovered(load)
    await load.end()
