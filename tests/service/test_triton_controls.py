"""Control inputs are fed as Triton feeds them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from tests.models import graphs
from tests.service.caller import Caller
from tests.service.processes import ServerProcess
from tests.service.tritons import infer, refused

TOML = """
[inputs.START]
control = "start"
[inputs.READY]
constant = 1
[inputs.END]
control = "end"
values = [0, 2]
[inputs.CORRID]
control = "corrid"
"""
X = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
CLOSE = {"rtol": 0, "atol": 1e-3}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("models")
    graphs.write(graphs.controlled(), models, "m", toml=TOML)
    process = ServerProcess(models, tmp_path_factory.mktemp("data"))
    try:
        yield process.start()
    finally:
        process.close()


@pytest.fixture(scope="module")
def triton(server: ServerProcess) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.address) as client:
        yield client


def test_start_end_and_the_sequence_are_told_to_the_graph(triton: InferenceServerClient):
    assert [each.name for each in triton.get_model_metadata("m").inputs] == ["x"]
    for _ in range(2):  # a sequence that begins anew is told so
        found = [infer(triton, "m", row, 500, start=not at, end=at == 3) for at, row in enumerate(X)]
        told = 500 + 200 * (np.arange(4) == 3)
        np.testing.assert_allclose(np.array(found), graphs.controlled_run(X) + told[:, None], **CLOSE)


def test_a_live_sequence_that_begins_anew_is_told_so(triton: InferenceServerClient):
    infer(triton, "m", X[0], 3, start=True)
    found = [infer(triton, "m", row, 3, start=not at) for at, row in enumerate(X)]
    np.testing.assert_allclose(np.array(found), graphs.controlled_run(X) + 3, **CLOSE)


def test_a_name_that_is_no_number_has_one_that_stands_for_it(triton: InferenceServerClient):
    [first], [second] = ([infer(triton, "m", X[0], name, start=True)[0]] for name in ("a", "b"))
    assert first != second
    assert infer(triton, "m", X[0], "a", start=True)[0] == first


def test_the_end_of_several_timesteps_at_once_is_refused(triton: InferenceServerClient):
    infer(triton, "m", X, 9, start=True)
    with refused("INVALID_ARGUMENT"):
        infer(triton, "m", X, 9, end=True)


def test_callers_of_the_other_api_give_what_the_graph_is_told(server: ServerProcess):
    told = {"END": np.zeros(1, np.float32), "CORRID": np.array([7])}
    with Caller(server.address) as caller:
        replies = [caller.predict("m", "s", {"x": piece, **told}).y for piece in (X[:1], X[1:])]
        np.testing.assert_allclose(np.concatenate(replies), graphs.controlled_run(X) + 7, **CLOSE)
        caller.reset("m", "s")
        reply = caller.predict("m", "s", {"x": X, **told})
    np.testing.assert_allclose(reply.y, graphs.controlled_run(X) + 7, **CLOSE)
