"""Model files that would harm the server: it tries each in a process of its own, and serves the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from recurra.wire.errors import ModelUnavailable
from tests.conftest import StartServer
from tests.models import graphs
from tests.service import zoo
from tests.service.caller import Caller
from tests.service.processes import ServerProcess, eventually

LSTM = zoo.MODELS["lstm"]


def hungry() -> ModelProto:
    """The LSTM, with 256 GiB of zeros beside it."""
    built = ModelProto()
    built.CopyFrom(LSTM.built)
    built.graph.initializer.append(numpy_helper.from_array(np.array([2**36]), "size"))
    built.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
            helper.make_node("Add", ["y", "sum"], ["z"]),
        ]
    )
    built.graph.output[0].name = "z"
    return built


def endless() -> ModelProto:
    """The LSTM behind a loop that has no end."""
    built = ModelProto()
    built.CopyFrom(LSTM.built)
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["still"]), helper.make_node("Identity", ["before"], ["after"])],
        "body",
        [graphs.info("i", [], graphs.INT64), graphs.info("going", [], TensorProto.BOOL), graphs.info("before", [])],
        [graphs.info("still", [], TensorProto.BOOL), graphs.info("after", [])],
    )
    built.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    built.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    built.graph.node.append(helper.make_node("Loop", ["", "yes", "nothing"], ["end"], body=body))
    built.graph.node.append(helper.make_node("Add", ["y", "end"], ["z"]))
    built.graph.output[0].name = "z"
    return built


@pytest.mark.parametrize(("stranger", "why"), [(hungry(), "alloc|memory"), (endless(), "took more than 4 s to load")])
def test_a_file_that_would_harm_the_server_is_refused_and_the_others_are_served(
    tmp_path: Path, start_server: StartServer, stranger: ModelProto, why: str
):
    graphs.write(LSTM.built, tmp_path / "models", "lstm")
    graphs.write(stranger, tmp_path / "models", "stranger")
    flags = ("--trial-seconds", "4", "--cache", str(tmp_path / "cache"))
    server = start_server(*flags, models=tmp_path / "models")
    with Caller(server.address) as caller:
        x = LSTM.draw(0, 3)
        np.testing.assert_allclose(caller.predict("lstm", "s", x).y, LSTM.whole(x), **zoo.CLOSE)
        with pytest.raises(ModelUnavailable, match=why):
            caller.predict("stranger", "s", x)
    kept = [json.loads(path.read_text())["refused"] for path in (tmp_path / "cache").iterdir()]
    assert "" in kept


def test_told_to_stop_during_a_trial_the_server_ends_it_and_begins_no_other(tmp_path: Path):
    for name in ("first", "second"):
        graphs.write(endless(), tmp_path / "models", name)
    server = ServerProcess(tmp_path / "models", tmp_path / "data", "--trial-seconds", "60", "--cache", "off")
    try:
        server.launch()
        assert server.process is not None
        children = Path(f"/proc/{server.process.pid}/task")
        eventually(lambda: any(b"quarantine" in each for each in _commands(children)))
        assert server.stop() == 0
        assert "model.refused" not in server.log
        assert "server.ready" not in server.log
    finally:
        server.close()


def _commands(tasks: Path) -> list[bytes]:
    """The command lines of all children of a process's threads."""
    pids = [pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
    return [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
