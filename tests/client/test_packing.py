from __future__ import annotations

import numpy as np
import pytest

from recurra.client import InvalidArgument, Model, SelfTest, TensorSpec
from recurra.client.packing import Layer, Unpacking, pack
from recurra.v1 import inference_pb2
from recurra.wire.tensors import to_array, to_tensor

OPTIONS = inference_pb2.PredictOptions()
FLOATS, WHOLE = np.dtype("f4"), np.dtype("i8")


def model(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = ()) -> Model:
    test = SelfTest(chunked=True, batched=True, chunked_error=0.0, batched_error=0.0, notes=(), ragged=True)
    return Model("m", "1", "ready", "", inputs, outputs, (), 0, (), None, 64, test, (), {}, ())


TWO = model(TensorSpec("x", FLOATS, (2,), True), TensorSpec("who", WHOLE, (), False))


def test_inputs_by_name_become_columns_padded_to_the_longest() -> None:
    layer, rng = Layer(TWO), np.random.default_rng(0)
    xs = [rng.standard_normal((timesteps, 2)).astype(np.float32) for timesteps in (3, 4, 3)]
    chunks = [layer.lay({"x": x, "who": who}) for who, x in enumerate(xs)]
    assert len({chunk.form for chunk in chunks}) == 1
    frame = pack(chunks, OPTIONS)
    assert np.frombuffer(frame.lengths, "<u4").tolist() == [3, 4, 3]
    columns = {tensor.name: to_array(tensor) for tensor in frame.inputs}
    assert columns["who"].tolist() == [0, 1, 2]
    assert columns["x"].shape == (3, 4, 2)
    for row, x in zip(columns["x"], xs, strict=True):
        np.testing.assert_array_equal(row[: len(x)], x)
        assert not row[len(x) :].any()


def test_chunks_of_very_different_lengths_or_shapes_do_not_share_a_frame() -> None:
    layer = Layer(model(TensorSpec("x", FLOATS, (None,), True)))
    forms = [layer.lay(np.zeros(shape)).form for shape in [(1, 3), (2, 3), (3, 3), (4, 3), (5, 3), (1, 4)]]
    assert forms[2] is forms[3]
    assert len(set(forms)) == 5


def test_one_timestep_as_the_model_takes_it_is_laid_out_as_any_other() -> None:
    layer = Layer(model(TensorSpec("x", FLOATS, (3,), True)))
    x = np.arange(3, dtype=np.float32)
    first, second, third = layer.lay(x), layer.lay(x), layer.lay(x.astype(np.float64))
    assert first == second == third
    assert layer.lay(x[None]) != first  # a chunk of one: its output keeps the time axis
    assert layer.lay(np.asfortranarray(np.stack([x, x]))[1]) == first
    with pytest.raises(InvalidArgument):
        layer.lay(np.zeros(4, np.float32))


def test_outputs_are_each_ones_own() -> None:
    timed, last = TensorSpec("y", FLOATS, (), True), TensorSpec("z", FLOATS, (2,), False)
    two, layer = model(TensorSpec("x", FLOATS, (3,), True), outputs=(timed, last)), Layer(TWO)
    y, z = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 2), np.float32)
    result = inference_pb2.FrameResult(outputs=[to_tensor(y, "y"), to_tensor(z, "z")])
    chunk, single = layer.lay({"x": np.zeros((2, 2)), "who": 0}), layer.lay({"x": np.zeros(2), "who": 0})
    unpacking = Unpacking(two, result, sequences=True)
    found = unpacking.outputs(1, chunk)
    assert isinstance(found, dict)
    assert found["y"].tolist() == [3, 4]
    found["z"][:] = 5
    alone = unpacking.outputs(1, single)
    assert isinstance(alone, dict)
    assert (alone["y"].shape, float(alone["y"]), alone["z"].tolist()) == ((), 3.0, [1, 1])
