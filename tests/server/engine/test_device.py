"""Where the device runs what: its thread, or the caller's where that is short."""

import asyncio
import threading
from contextlib import closing

import pytest

from recurra.server.engine.device import Device


@pytest.fixture
def device():
    with closing(Device()) as made:
        yield made


def here() -> threading.Thread:
    return threading.current_thread()


async def test_what_is_known_to_be_short_is_run_at_once(device):
    assert await device.run("short", here, at_once=True) is not here()
    assert await device.run("short", here, at_once=True) is here()
    assert await device.run("another", here, at_once=True) is not here()


async def test_what_takes_long_is_run_on_the_thread_each_time(device):
    loop, gate = asyncio.get_running_loop(), threading.Event()

    def long() -> bool:
        loop.call_soon_threadsafe(loop.call_later, 0.01, gate.set)  # longer than what is short
        return gate.wait()

    first = device.run("long", long)
    assert await first
    assert await device.run("long", here, at_once=True) is not here()


async def test_nothing_is_run_beside_what_the_thread_runs(device):
    await device.run("short", here, at_once=True)
    gate = threading.Event()
    busy = device.run("long", gate.wait)
    queued = device.run("short", here, at_once=True)
    assert not queued.done()
    gate.set()
    assert await busy
    assert await queued is not here()


@pytest.mark.parametrize("times", [1, 2])
async def test_what_it_raises_comes_through(device, times):
    def fail() -> None:
        raise KeyError("missing")

    for _ in range(times):
        with pytest.raises(KeyError):
            await device.run("failing", fail, at_once=True)


async def test_a_caller_that_is_cancelled_leaves_it_usable(device):
    gate = threading.Event()
    waiting = device.run("long", gate.wait)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    assert await device.run("next", here) is not here()


async def test_copies_go_on_beside_a_run_one_after_another(device):
    running, told = threading.Event(), []
    run = device.run("long", running.wait)
    loop = asyncio.get_running_loop()
    threads = [await device.copy(loop, here) for _ in range(2)]
    assert len({*threads, here()}) == 2
    first, gate = device.copy(loop, lambda: gate.wait() and told.append("copy")), threading.Event()
    device.after_copies(lambda: told.append("after"))
    assert told == []
    gate.set()
    await first
    device.until_copied()
    assert told == ["copy", "after"]
    device.after_copies(lambda: told.append(here()))  # there are none: at once
    assert told[-1] is here()
    running.set()
    assert await run


async def test_waiting_for_copies_includes_what_comes_after_them(device):
    first, began, gate, told = threading.Event(), threading.Event(), threading.Event(), []
    copied = device.copy(asyncio.get_running_loop(), first.wait)
    device.after_copies(lambda: (began.set(), gate.wait(), told.append("after")))
    first.set()
    await asyncio.to_thread(began.wait)
    waiting = asyncio.create_task(asyncio.to_thread(device.until_copied))
    for _ in range(20):  # ways to other threads and back: it would be done by then
        await asyncio.to_thread(int)
    gate.set()
    await waiting
    assert told == ["after"]
    assert await copied


async def test_a_copy_that_fails_is_told(device):
    def fail() -> None:
        raise KeyError("missing")

    with pytest.raises(KeyError):
        await device.copy(asyncio.get_running_loop(), fail)
    assert device.copy_now(here) is here()


def test_what_nobody_waits_for_any_more_harms_nobody(device):
    async def leave() -> None:
        device.copy(asyncio.get_running_loop(), gate.wait)

    async def come() -> threading.Thread:
        return await device.copy(asyncio.get_running_loop(), here)

    gate = threading.Event()
    asyncio.run(leave())
    gate.set()
    assert asyncio.run(come()) is not here()


async def test_nothing_is_copied_while_something_is_run_alone(device):
    told: list[str] = []
    began, gate, loop = threading.Event(), threading.Event(), asyncio.get_running_loop()
    alone = device.alone("record", lambda: (began.set(), gate.wait(), told.append("alone")))
    await asyncio.to_thread(began.wait)
    there = device.copy(loop, told.append, "there")
    at_once = asyncio.create_task(asyncio.to_thread(device.copy_now, told.append, "here"))
    for _ in range(20):  # ways to other threads and back: both would be done by then
        await asyncio.to_thread(int)
    gate.set()
    await asyncio.gather(alone, there, at_once)
    assert told[0] == "alone"
    assert sorted(told) == ["alone", "here", "there"]


async def test_a_copy_here_waits_for_no_copy_there(device):
    gate = threading.Event()
    there = device.copy(asyncio.get_running_loop(), gate.wait)
    assert device.copy_now(here) is here()
    gate.set()
    assert await there
