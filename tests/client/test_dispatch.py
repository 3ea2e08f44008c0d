"""What a stream does with its handles, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from recurra.client import AsyncClient
from recurra.client.dispatch import Dispatch
from recurra.client.packing import Asked, Layer
from recurra.client.patience import Chance, WallClock
from recurra.client.roster import IDLE_SECONDS
from recurra.v1 import inference_pb2
from tests.client.faulty import Faulty
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
ROOM = 4
Predict = Callable[[str, np.ndarray], asyncio.Future]


class Later(WallClock):
    """The real time, and some."""

    by = 0.0

    def now(self) -> float:
        return super().now() + self.by


@pytest.fixture
def clock() -> Later:
    return Later()


@pytest.fixture
async def aclient(faulty: Faulty, clock: Later) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(channels=[faulty], chance=Chance(clock)) as client:
        yield client


@pytest.fixture
async def dispatch(aclient: AsyncClient) -> AsyncIterator[Dispatch]:
    options = inference_pb2.PredictOptions(return_sequences=True)
    model = await aclient.model("lstm")
    dispatch = Dispatch(
        aclient._context, model, create="if_missing", durability=None, options=options, linger=0.001, room=ROOM
    )
    yield dispatch
    await dispatch.close()


@pytest.fixture
async def predict(dispatch: Dispatch, aclient: AsyncClient) -> Predict:
    layer = Layer(await aclient.model("lstm"))

    def ask(session: str, x: np.ndarray) -> asyncio.Future:
        future = asyncio.get_running_loop().create_future()

        def answer(_: Asked, y) -> bool:
            future.set_exception(y) if isinstance(y, Exception) else future.set_result(y)
            return True

        dispatch.put(Asked(session, layer.lay(x), 20, answer, {}))
        return future

    return ask


async def test_sessions_come_and_go_beyond_the_room_for_them(predict: Predict, faulty: Faulty, session: str) -> None:
    """More sessions than handles: each goes on from where it stood, whichever handle it has by then."""
    rng = np.random.default_rng(0)
    xs = [LSTM.draw(row, 40) for row in range(3 * ROOM)]
    ys: list[list[np.ndarray]] = [[] for _ in xs]
    for _ in range(60):
        some = rng.choice(len(xs), rng.integers(1, ROOM + 1), replace=False)
        outputs = await asyncio.gather(*(predict(f"{session} {row}", xs[row][len(ys[row])]) for row in some))
        for row, y in zip(some, outputs, strict=True):
            ys[row].append(y)
    for x, y in zip(xs, ys, strict=True):
        np.testing.assert_allclose(y, LSTM.whole(x)[: len(y)], **CLOSE)
    assert faulty.asked == ["StreamPredict"]
    assert set(faulty.unbound) == set(range(ROOM))


async def test_a_session_that_is_idle_is_unbound_and_bound_again(
    faulty: Faulty, session: str, predict: Predict, dispatch: Dispatch, clock: Later
) -> None:
    x = LSTM.draw(0, 3)
    ys = [await predict(session, x[0]), await predict(f"{session}!", x[0])]
    clock.by = IDLE_SECONDS + 1
    ys.append(await predict(session, x[1]))
    dispatch.sweep()
    ys.append(await predict(session, x[2]))
    assert faulty.unbound == [1]
    np.testing.assert_allclose(await predict(f"{session}!", x[1]), LSTM.whole(x)[1], **CLOSE)
    np.testing.assert_allclose([ys[0], *ys[2:]], LSTM.whole(x), **CLOSE)
    assert faulty.asked == ["StreamPredict"]
