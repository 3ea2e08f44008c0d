"""Model files that were damaged: refused with a reason, or served; the server and its other models go on."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from recurra.models import ModelRefused, quarantine
from recurra.wire.errors import ModelUnavailable, RecurraError
from tests.conftest import StartServer
from tests.models import graphs
from tests.service import zoo
from tests.service.caller import Caller

LSTM: Final = zoo.MODELS["lstm"]
X: Final = LSTM.draw(0, 3)
MUTANTS: Final = int(os.environ.get("FUZZ_MODELS", "10"))  # of a run: each is tried in a process of its own
TRIAL_SECONDS: Final = "20"


def damaged(seed: int) -> bytes:
    """One of the tests' models with some of it changed: as bytes, or as a graph."""
    rng = random.Random(seed)
    source = rng.choice([model.built for model in zoo.MODELS.values()])
    return rng.choice((_bytes, _graph))(rng, source)


def _bytes(rng: random.Random, source: ModelProto) -> bytes:
    data = bytearray(source.SerializeToString())
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at] ^= rng.randint(1, 255)
            case 1:
                del data[at : at + rng.randint(1, 30)]
            case 2:
                data[at:at] = rng.randbytes(rng.randint(1, 30))
            case _:
                data[at:at] = data[at : at + rng.randint(1, 200)]
    return bytes(data)


def _graph(rng: random.Random, source: ModelProto) -> bytes:
    """Well-formed, and wrong."""
    built = ModelProto()
    built.CopyFrom(source)
    for _ in range(rng.randint(1, 3)):
        rng.choice(_EDITS)(rng, built)
    return built.SerializeToString()


def _drop(rng: random.Random, built: ModelProto) -> None:
    part = rng.choice([built.graph.node, built.graph.initializer, built.graph.input, built.graph.output])
    if len(part):
        del part[rng.randrange(len(part))]


def _rewire(rng: random.Random, built: ModelProto) -> None:
    names = [name for node in built.graph.node for name in (*node.input, *node.output)] or ["x"]
    node = rng.choice(built.graph.node or [None])
    if node is not None and len(node.input):
        node.input[rng.randrange(len(node.input))] = rng.choice(names)


def _rename(rng: random.Random, built: ModelProto) -> None:
    if len(built.graph.node):
        rng.choice(built.graph.node).op_type = rng.choice(
            ["LSTM", "GRU", "Loop", "If", "Scan", "Einsum", "Nothing", ""]
        )


def _reshape(rng: random.Random, built: ModelProto) -> None:
    if len(built.graph.initializer):
        dims = rng.choice(built.graph.initializer).dims
        if len(dims):
            dims[rng.randrange(len(dims))] = rng.choice([0, -1, 1, 7, 1 << 31, (1 << 62) + 1])


def _retype(rng: random.Random, built: ModelProto) -> None:
    if len(built.graph.initializer):
        rng.choice(built.graph.initializer).data_type = rng.choice(
            [TensorProto.STRING, TensorProto.INT64, TensorProto.FLOAT16, TensorProto.COMPLEX64, 0, 99]
        )


def _elsewhere(rng: random.Random, built: ModelProto) -> None:
    """Weights that are to be read from another file."""
    if len(built.graph.initializer):
        tensor = rng.choice(built.graph.initializer)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = (
            "location",
            rng.choice(["/etc/passwd", "../../../../etc/passwd", "model.onnx", "\0", ""]),
        )


def _poison(rng: random.Random, built: ModelProto) -> None:
    if len(built.graph.initializer):
        tensor = rng.choice(built.graph.initializer)
        tensor.raw_data = b"\xff" * len(tensor.raw_data)


def _opset(rng: random.Random, built: ModelProto) -> None:
    for opset in built.opset_import:
        opset.version = rng.choice([0, 1, 7, 99, 1 << 40])


_EDITS: Final[list[Callable[[random.Random, ModelProto], None]]] = [
    _drop, _rewire, _rename, _reshape, _retype, _elsewhere, _poison, _opset,
]  # fmt: skip


def test_a_server_with_damaged_models_serves_the_others(tmp_path: Path, start_server: StartServer):
    first = int(os.environ.get("FUZZ_SEED", random.randrange(1 << 30)))
    graphs.write(LSTM.built, tmp_path / "models", "lstm")
    names = [f"damaged-{seed}" for seed in range(first, first + MUTANTS)]
    for name in names:
        place = tmp_path / "models" / name / "1"
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes(damaged(int(name.partition("-")[2])))
    flags = ("--trial-seconds", TRIAL_SECONDS, "--cache", "off")
    server = start_server(*flags, models=tmp_path / "models", seconds=30.0 + 2 * MUTANTS * float(TRIAL_SECONDS))
    with Caller(server.address) as caller:
        for name in names:  # one that is no good, or is no other model than it was
            asked = outcome(caller, name)
            assert asked is None or type(asked) is not RecurraError, asked
            if isinstance(asked, ModelUnavailable):
                assert name in str(asked) or "model.onnx" in str(asked)
        np.testing.assert_allclose(caller.predict("lstm", "s", X).y, LSTM.whole(X), **zoo.CLOSE)
    assert server.process is not None
    assert server.process.poll() is None
    assert "request.failed" not in server.log


def outcome(caller: Caller, model: str) -> RecurraError | None:
    for x in (X, X[0], X[:, :2], np.array([1, 2])):
        told: RecurraError | None = None
        try:
            caller.predict(model, "s", x)
        except RecurraError as error:
            told = error
        if told is None or type(told) is RecurraError:
            break
    return told


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data + os.urandom(64),
        lambda data: os.urandom(len(data)),
    ],
)
def test_a_file_that_is_no_model_is_refused_by_its_trial(tmp_path: Path, change: Any):
    place = tmp_path / "stranger" / "1"
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(change(LSTM.built.SerializeToString()))
    with pytest.raises(ModelRefused, match=r"stranger|model\.onnx"):
        quarantine.clear(tmp_path / "stranger")
