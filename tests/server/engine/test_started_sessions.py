"""Operations that start from a source: what fails in one is its own affair."""

import numpy as np
import pytest

from recurra import models
from recurra.server.api import operations
from recurra.server.engine.operation import Kind
from recurra.v1 import session_pb2
from recurra.wire.errors import RunFailed
from tests.server.engine.world import world
from tests.service import zoo

GRU = zoo.MODELS["gru"]
ENCODE = zoo.encoder()[1]


@pytest.fixture(params=["host", "device"])
async def a(store, repository, request):
    async with world(store, models.load(repository / "gru", provider="cpu"), request.param) as made:
        yield await made.replica()


def source(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 6, 5)).astype(np.float32)


async def test_a_source_that_the_graph_fails_on_harms_no_other(a):
    for name in "abc":
        await a.predict(name, GRU.draw(7, 3)).answer()
    gate = a.run.hold("run")
    first = a.predict("first", GRU.draw(0, 2))
    await gate.here()
    bad = source(1)[..., :4]
    sources = [source(0), bad, source(2)]
    calls = [a.predict(name, GRU.draw(at, 2), start=[sources[at]]) for at, name in enumerate("abc")]
    gate.open()
    await first.answer()
    for at in (0, 2):
        answer = await calls[at].answer()
        right = GRU.whole(GRU.draw(at, 2), state=(ENCODE(source(at)[0]),))
        np.testing.assert_allclose(answer.y, right, **zoo.CLOSE)
        assert answer.position == 2
    with pytest.raises(RunFailed, match="no timestep was consumed"):
        await calls[1].answer()
    assert (await a.stands("b"))[1] == 3
    after = await a.predict("b", GRU.draw(8, 2)).answer()
    np.testing.assert_allclose(after.y, GRU.whole(GRU.draw(7, 3), GRU.draw(8, 2))[3:], **zoo.CLOSE)


async def test_a_source_of_other_sizes_and_the_same_bytes_is_another(a):
    def salt(*shape: int) -> int:
        zeros = np.zeros((1, *shape), np.float32)
        return operations.block(
            a.engine, session_pb2.Operation(), 0, kind=Kind.PREDICT, wait_seconds=1, start=[zeros]
        ).salt

    assert salt(4, 6) != salt(6, 4)
