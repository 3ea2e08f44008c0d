"""Predict: one session's chunks, and what can be asked with them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.service.caller import Caller
from tests.service.zoo import CLOSE, MODELS


@pytest.mark.parametrize("name", MODELS)
def test_chunks_of_any_size_give_what_the_whole_input_gives(caller: Caller, session: str, name: str):
    model = MODELS[name]
    x = model.draw(0, 17)
    pieces = np.split(x, [1, 2, 7, 12])
    replies = [caller.predict(name, session, piece) for piece in pieces]
    np.testing.assert_allclose(np.concatenate([reply.y for reply in replies]), model.whole(x), **CLOSE)
    assert [reply.position for reply in replies] == [1, 2, 7, 12, 17]
    assert [reply.session.created for reply in replies] == [True, False, False, False, False]
