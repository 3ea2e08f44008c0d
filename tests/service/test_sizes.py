"""Sessions of 4 MB beside sessions of 2 KB; what they cost each other is told by `python -m bench.beside`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench import beside
from tests.conftest import StartServer
from tests.service.caller import Caller


def test_small_sessions_are_answered_while_large_ones_are_in_flight(start_server: StartServer, tmp_path: Path) -> None:
    server, x = start_server(models=beside.repository(tmp_path / "models")), np.ones((1, 1), np.float32)
    asked, meanwhile = 0, 0
    with Caller(server.address) as caller:
        for step in range(1, 6):
            large = [caller.send("large", f"large {row}", x) for row in range(12)]
            while not all(pending.call.done() for pending in large):
                asked += 1
                assert caller.predict("small", "small", x).position == asked
                meanwhile += not all(pending.call.done() for pending in large)
            assert [pending.reply().position for pending in large] == [step] * 12
    assert meanwhile > 0
