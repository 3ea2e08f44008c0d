"""A thousand streams, each with one session: where sequence batchers die."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from recurra.client import AsyncClient
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]


async def step_streams(address: str, *, streams: int, steps: int, progress: Callable[[], None] = lambda: None) -> None:
    """Step `streams` sessions, each over a stream of its own and `steps` times, and compare every answer."""
    xs = [LSTM.draw(row, steps) for row in range(streams)]
    async with AsyncClient(address, timeout=120) as client:

        async def one(row: int) -> None:
            ys = []
            async for y in client.session("lstm", f"stream {row}").stream(xs[row], in_flight=2):
                ys.append(y)
                progress()
            np.testing.assert_allclose(np.stack(ys), LSTM.whole(xs[row]), **CLOSE)

        async with asyncio.TaskGroup() as tasks:
            for row in range(streams):
                tasks.create_task(one(row))
        positions = {info.session: info.position async for info in client.sessions("lstm")}
    assert positions == {f"stream {row}": steps for row in range(streams)}
