"""A ModelInfer of many sequences, named one a row by the input sequence_ids: Recurra's own extension."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient

from recurra import models
from recurra.wire.errors import Overloaded
from tests.conftest import StartServer
from tests.service.caller import Caller
from tests.service.processes import ServerProcess
from tests.service.tritons import TIMEOUT_SECONDS, infer, reason, refused, tensor
from tests.service.zoo import CLOSE, MODELS

REPOSITORY = Path(__file__).parent.parent.parent / "models/repository"
LSTM, PICKY = MODELS["lstm"], MODELS["picky"]
Array = NDArray[Any]


@pytest.fixture(scope="module")
def triton(server: ServerProcess) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.address) as client:
        yield client


def batch(client: InferenceServerClient, model: str, xs: Array, names: list[str], **more: Any) -> Array:
    """A step of each sequence, xs (N, T, ...)."""
    flags = {f"sequence_{name}": more.pop(name) for name in ("start", "end") if name in more}
    if flags:
        more["sequence_id"] = 1  # says nothing: the client sends the flags only beside one
    ids = tensor("sequence_ids", np.array([name.encode() for name in names], object))
    result = client.infer(model, [tensor("x", xs), ids], client_timeout=TIMEOUT_SECONDS, **flags, **more)
    return result.as_numpy("y")


def named(session: str, count: int) -> list[str]:
    return [f"{session} {row}" for row in range(count)]


def test_each_row_is_a_sequence_of_its_own(triton: InferenceServerClient, caller: Caller, session: str):
    xs, names = np.stack([LSTM.draw(seed, 6) for seed in range(40)]), named(session, 40)
    found = [
        batch(triton, "lstm", xs[:, :2], names, start=True),
        batch(triton, "lstm", xs[::-1, 2:4], names[::-1])[::-1],
        batch(triton, "lstm", xs[:, 4:], names, end=True),
    ]
    whole = np.stack([LSTM.whole(x) for x in xs])
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, **CLOSE)
    with refused("INVALID_ARGUMENT"):
        infer(triton, "lstm", xs[0], names[7])


def test_its_rows_and_single_requests_are_the_same_sequences(triton: InferenceServerClient, session: str):
    xs, names = np.stack([LSTM.draw(seed, 4) for seed in (1, 2)]), named(session, 2)
    for x, name in zip(xs, names, strict=True):
        infer(triton, "lstm", x[:2], name, start=True)
    found = batch(triton, "lstm", xs[:, 2:], names)
    np.testing.assert_allclose(found, [LSTM.whole(x)[2:] for x in xs], **CLOSE)


def test_rows_that_fail_are_named_and_the_others_are_applied(
    triton: InferenceServerClient, caller: Caller, session: str
):
    names, xs = named(session, 4), np.stack([PICKY.draw(seed, 1) for seed in range(4)])
    batch(triton, "picky", xs, names, start=True)
    caller.end("picky", names[1])
    again = xs.copy()
    again[2, 0, 0] = 2000.0  # on which the model fails
    with refused("INVALID_ARGUMENT") as caught:
        batch(triton, "picky", again, names)
    assert caught.value.message().startswith("rows 1,2 of 4 failed, the others are applied; row 1: inference request")
    assert reason(caught.value).metadata["failed_rows"] == "1,2"
    assert [caller.get("picky", names[row]).position for row in (0, 2, 3)] == [2, 1, 2]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.array([b"a"], object), "a batch of 2"),
        (np.array([b"a", b"b", b"c"], object), "a batch of 2"),
        (np.array([b"a", b"a"], object), "twice"),
        (np.array([b"a", b""], object), "non-empty correlation ID"),
        (np.array([b"a", b"\xff"], object), "no UTF-8"),
        (np.array([[b"a", b"b"]], object), "shape [N]"),
        (np.array([1, 2]), "is BYTES"),
    ],
)
def test_ids_that_do_not_fit_the_batch_are_refused(triton: InferenceServerClient, ids: Array, words: str):
    xs = np.stack([LSTM.draw(seed, 1) for seed in range(2)])
    with refused("INVALID_ARGUMENT") as caught:
        triton.infer("lstm", [tensor("sequence_ids", ids), tensor("x", xs)], sequence_id=1, sequence_start=True)
    assert words in caught.value.message()


def test_more_sequences_than_there_are_slots_are_too_many_at_present(start_server: StartServer):
    with InferenceServerClient(start_server("--slots", "4").address) as client:
        xs = np.stack([LSTM.draw(seed, 1) for seed in range(5)])
        with refused("UNAVAILABLE") as caught:
            batch(client, "lstm", xs, named("s", 5), start=True)
        assert isinstance(reason(caught.value), Overloaded)
        np.testing.assert_allclose(
            batch(client, "lstm", xs[:4], named("s", 4), start=True), [LSTM.whole(x) for x in xs[:4]], **CLOSE
        )


def test_a_request_that_waits_longer_than_it_may_has_expired(triton: InferenceServerClient, session: str):
    with refused("UNAVAILABLE", "Request timeout expired"):
        infer(triton, "lstm", LSTM.draw(0, 1), session, start=True, timeout=1)


def test_a_convolutional_lstm_is_a_sequence_of_frames(tmp_path: Path, start_server: StartServer):
    shutil.copytree(REPOSITORY / "nowcaster", tmp_path / "nowcaster")
    model = models.load(tmp_path / "nowcaster", provider="cpu")
    [takes], [gives] = model.signature.inputs, model.signature.outputs
    frames = np.random.default_rng(0).random((2, 3, *takes.shape), np.float32)
    states = [np.stack([state.fresh] * 2, state.batch_axis) for state in model.signature.states]
    [want], _ = model.program.run([frames], states)
    with InferenceServerClient(start_server(models=tmp_path).address) as client:
        told = client.get_model_metadata("nowcaster")
        rank = len(told.inputs[0].shape)
        for row, sequence in enumerate(("north", "south")):
            for t in range(3):
                sent = frames[row : row + 1, t] if rank == frames.ndim - 1 else frames[row : row + 1, t : t + 1]
                flags = {"sequence_start": not t, "sequence_end": t == 2}
                result = client.infer("nowcaster", [tensor(takes.name, sent)], sequence_id=sequence, **flags)
                found = result.as_numpy(gives.name)
                np.testing.assert_allclose(found.reshape(want[row, t].shape), want[row, t], rtol=0, atol=1e-5)
