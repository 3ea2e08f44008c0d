"""What a server does that is offered three times what it can serve, and one whose store stops.

    python -m bench.overload [--quick] [--seconds 60] [--times 3] [--sessions 1024] [--timeout 1]

Unary calls of an LSTM 2x256, committed, by a schedule, each with a deadline. First as much as is answered (the peak);
then so many times that; then less than the peak, during which the store is stopped (SIGSTOP) for eight seconds.
Exit status 1 if goodput under overload is less than 80 % of the peak, or it does not come back after either.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench import models, processes, results
from bench.calls import Calls, Requests, Tally
from bench.loads import names

_CONNECTIONS = 8
_SLICE = 0.5


async def load(address, requests, rate, seconds, timeout, pids=(), store=None, stop=None, in_flight=0):
    tally = Tally(_SLICE)
    lost, loop = asyncio.Event(), asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    began = time.perf_counter()
    lines = []
    for _ in range(_CONNECTIONS):
        _, calls = await loop.create_connection(
            lambda: Calls(tally, began, timeout=timeout, lost=lost), host, int(port)
        )
        await calls.settled.wait()
        lines.append(calls)
    memory = []
    began = time.perf_counter()
    for calls in lines:
        calls._began = began
    due, turn, nextmem = began, 0, began
    rng = np.random.default_rng(2)
    stopped = resumed = False
    while (now := time.perf_counter()) < began + seconds:
        if in_flight:
            for calls in lines:
                while len(calls) < in_flight // _CONNECTIONS:
                    calls.call(now, requests.next())
                    tally.offered[int((now - began) / _SLICE)] += 1
        else:
            while due <= now:
                lines[turn].call(due, requests.next())
                turn = (turn + 1) % _CONNECTIONS
                tally.offered[int((due - began) / _SLICE)] += 1
                due += rng.exponential(1 / rate)
        for calls in lines:
            calls.send()
        if now >= nextmem:
            memory.append([processes.resident_bytes(pid) for pid in pids])
            nextmem += _SLICE
        if stop and not stopped and now > began + stop[0]:
            os.kill(store, signal.SIGSTOP)
            stopped = True
        if stop and stopped and not resumed and now > began + stop[1]:
            os.kill(store, signal.SIGCONT)
            resumed = True
        await asyncio.sleep(0.001)
    until = time.perf_counter() + timeout + 1
    while any(map(len, lines)) and time.perf_counter() < until:
        for calls in lines:
            calls.send()
        await asyncio.sleep(0.01)
    if lost.is_set():
        print("LOST a connection")
    for calls in lines:
        calls._transport.close()
    return tally, memory


def show(name, tally, memory, seconds):
    ok = sum(tally.answered.values())
    print(
        name,
        "offered/s",
        sum(tally.offered.values()) / seconds,
        "good/s",
        ok / seconds,
        dict(tally.outcomes),
        "untold",
        tally.untold,
        "open",
        tally.open,
        "p50/p99",
        np.percentile(tally.latencies or [0], (50, 99)).round(3),
        "mem",
        [m >> 20 for m in memory[0]] if memory else "",
        [m >> 20 for m in memory[-1]] if memory else "",
    )
    print("   ", [tally.answered[i] for i in range(int(seconds / _SLICE) + 3)])


async def main(a):
    with tempfile.TemporaryDirectory(prefix="recurra-overload-") as folder:
        repository, shape = (
            models.repository(Path(folder) / "models", lstm=models.lstm()),
            models.EXAMPLES["lstm"].shape,
        )
        with (
            processes.store(Path(folder) / "store", append_only="everysec") as (url, store),
            processes.server(repository, url, *a.flag) as (address, server),
        ):
            requests = Requests("lstm", names(a.sessions), shape)
            pids = (server, store)
            t, m = await load(address, requests, 0, 3, 5, pids, in_flight=256)
            show("warm", t, m, 3)
            c0 = processes.cpu_microseconds(server)
            own = time.process_time()
            t, m = await load(address, requests, 0, a.seconds / 2, 5, pids, in_flight=256)
            show("peak", t, m, a.seconds / 2)
            peak = sum(t.answered.values()) / (a.seconds / 2)
            print(
                "server cores",
                (processes.cpu_microseconds(server) - c0) / 1e6 / (a.seconds / 2 + 0.1),
                "own",
                (time.process_time() - own) / (a.seconds / 2 + 0.1),
            )
            for x in a.times:
                c0 = processes.cpu_microseconds(server)
                own = time.process_time()
                t, m = await load(address, requests, peak * x, a.seconds, a.timeout, pids)
                show(f"{x}x", t, m, a.seconds)
                print(
                    "server cores",
                    (processes.cpu_microseconds(server) - c0) / 1e6 / (a.seconds + 1),
                    "own",
                    (time.process_time() - own) / (a.seconds + 1),
                )
            if a.stop:
                t, m = await load(address, requests, peak * 0.6, 24, a.timeout, pids, store, (4, 12))
                show("stop", t, m, 24)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--seconds", type=float, default=8)
    p.add_argument("--times", type=float, nargs="+", default=[0.7, 1.5, 3])
    p.add_argument("--sessions", type=int, default=1024)
    p.add_argument("--timeout", type=float, default=1)
    p.add_argument("--stop", action="store_true")
    p.add_argument("--flag", nargs="*", default=[])
    asyncio.run(main(p.parse_args()))
