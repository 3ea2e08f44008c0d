"""What a model's statistics count, and as how many."""

import numpy as np
import pytest

from recurra.server.engine.operation import Create, Kind
from recurra.wire.errors import SessionNotFound
from tests.service import zoo

PICKY = zoo.MODELS["picky"]


def x(count: int = 1) -> np.ndarray:
    return np.stack([PICKY.draw(seed, 1) for seed in range(count)])


async def test_each_predict_of_a_batch_counts_with_the_time_of_its_whole_batch(a):
    told = a.engine.statistics
    for call in a.many(["s", "t", "u"], x(3)):
        await call.answer()
    await a.predict("s", x()[0]).answer()
    assert (told.inferences, told.executions) == (4, 2)
    totals = (told.success, told.queue, *told.computed())
    assert [total.count for total in totals] == [4] * 5
    assert all(total.seconds > 0 for total in totals)
    assert told.fail.count == 0
    assert sorted(told.by_size) == [1, 3]
    alone, three = told.by_size[1], told.by_size[3]
    assert {count for each in (alone, three) for count in (each.runs, each.packs)} == {1}
    assert told.computed()[1].seconds == pytest.approx(alone.running + 3 * three.running)
    assert told.success.seconds > told.queue.seconds


async def test_the_time_in_the_queue_counts_from_the_arrival(a):
    held = a.run.hold("run")
    first = a.predict("s", x()[0])
    await held.here()
    second = a.predict("t", x()[0])
    before = a.engine.statistics.queue.seconds
    a.clock.ahead_seconds += 5
    held.open()
    await first.answer()
    await second.answer()
    assert a.engine.statistics.queue.seconds - before >= 5


async def test_what_is_refused_counts_as_failed_and_other_operations_not_at_all(a):
    with pytest.raises(SessionNotFound):
        await a.predict("s", x()[0], create=Create.NEVER).answer()
    told = a.engine.statistics
    assert (told.fail.count, told.success.count, told.inferences) == (1, 0, 0)
    await a.predict("s", x()[0]).answer()
    await a.change(Kind.END, "s").answer()
    assert (told.success.count, told.inferences, told.executions) == (1, 1, 1)
