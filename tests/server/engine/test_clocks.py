"""Clocks that jump by days, and replicas whose clocks are days apart: a session lives as long as the store keeps it."""

import numpy as np
import pytest

from recurra.wire.errors import DataLoss, SessionExpired
from tests.server.engine.world import NOTHING, Replica, World, until
from tests.service.zoo import MODELS

PICKY, DAY = MODELS["picky"], 86_400


@pytest.mark.parametrize("checkpointed", [False, True])
async def test_clocks_that_are_days_apart_lose_no_session(here: World, *, checkpointed: bool):
    replicas = [await here.replica(checkpoint_seconds=0.2) for _ in range(3)]
    last, xs = NOTHING, []
    for days in (0, 3, -3, 40, -40, 0.001, -0.001):
        for at, replica in enumerate(replicas):
            replica.clock.stepped_seconds = days * DAY * (at - 1)
            for _ in range(2):
                xs.append(PICKY.draw(len(xs), 1))
                told = await replica.predict("s", xs[-1], after=last, checkpointed=checkpointed).answer()
                np.testing.assert_allclose(told.y, PICKY.whole(*xs)[-1:], rtol=1e-5, atol=1e-6)
                last = told.last_id
            replica.engine.leave(np.array([replica.engine.slot("s")]))  # its stream ends
            await until(lambda replica=replica: _released(replica))


@pytest.mark.parametrize(("days", "told"), [(-3, DataLoss), (3, SessionExpired)])
async def test_what_a_store_lost_is_told_by_the_clock_of_who_is_asked(here, a, b, days, told):
    """A clock that is behind never calls a loss an expiry; one that is ahead cannot know better."""
    first = await a.predict("s", PICKY.draw(0, 1)).answer()
    await here.forget()
    b.clock.stepped_seconds = days * DAY
    with pytest.raises(told):
        await b.predict("s", PICKY.draw(1, 1), after=first.last_id, told_expire_ms=first.expire_ms).answer()


async def _released(replica: Replica) -> bool:
    found = await replica.engine.reader.look("s")
    return not found.header["owner"].any()
