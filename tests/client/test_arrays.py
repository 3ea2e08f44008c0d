from __future__ import annotations

import numpy as np
import pytest

from recurra.client.arrays import check_names, convert, lay_out, state_tensors
from recurra.client.chunk import to_mask, to_outputs
from recurra.client.model import Model, SelfTest, StateSpec, TensorSpec
from recurra.wire.errors import InvalidArgument
from recurra.wire.tensors import to_tensor

F4, I4 = np.dtype("<f4"), np.dtype("<i4")


def model(*inputs: TensorSpec, chunk_sizes: tuple[int, ...] = ()) -> Model:
    return Model(
        name="m",
        version="1",
        status="ready",
        error="",
        inputs=inputs or (TensorSpec("x", F4, (3,), has_time_axis=True),),
        outputs=(TensorSpec("y", F4, (2,), has_time_axis=True), TensorSpec("z", F4, (2,), has_time_axis=False)),
        states=(StateSpec("lstm/h", "lstm", F4, (1, 4)), StateSpec("lstm/c", "lstm", F4, (1, 4))),
        state_bytes=32,
        chunk_sizes=chunk_sizes,
        session_ttl=None,
        max_batch=0,
        self_test=SelfTest(chunked=True, batched=True, chunked_error=0, batched_error=0, notes=(), ragged=False),
        providers=(),
        nodes={},
        start_inputs=(),
    )


TWO = model(TensorSpec("tokens", I4, (), has_time_axis=True), TensorSpec("rate", F4, (1,), has_time_axis=False))


def test_one_timestep_gets_a_time_axis() -> None:
    laid = lay_out(model(), [1, 2, 3])
    assert laid.inputs["x"].shape == (1, 3)
    assert laid.inputs["x"].dtype == F4
    assert (laid.timesteps, laid.single) == (1, True)


def test_a_chunk_is_taken_as_it_is() -> None:
    laid = lay_out(model(), np.zeros((5, 3)))
    assert (laid.inputs["x"].shape, laid.timesteps, laid.single) == ((5, 3), 5, False)


def test_rows_lead() -> None:
    assert lay_out(model(), np.zeros((7, 3)), (7,)).inputs["x"].shape == (7, 1, 3)
    assert lay_out(model(), np.zeros((7, 5, 3)), (7,)).timesteps == 5


def test_inputs_by_name_with_and_without_a_time_axis() -> None:
    laid = lay_out(TWO, {"tokens": [1, 2, 3], "rate": [16.0]})
    assert {name: array.shape for name, array in laid.inputs.items()} == {"tokens": (3,), "rate": (1,)}
    assert laid.timed == {"tokens"}
    assert lay_out(TWO, {"tokens": 4, "rate": [16.0]}).single


def test_any_size_fits_where_the_model_says_so() -> None:
    anything = model(TensorSpec("x", F4, (None, 2), has_time_axis=True))
    assert lay_out(anything, np.zeros((9, 2))).single
    assert not lay_out(anything, np.zeros((4, 9, 2))).single


@pytest.mark.parametrize(
    ("of", "x", "says"),
    [
        (model(), np.zeros((5, 4)), "takes x float32 (T, 3)"),
        (model(), np.zeros((1, 5, 3)), "takes x float32 (T, 3)"),
        (model(), np.zeros((0, 3)), "at least one timestep"),
        (model(), {"z": [1, 2, 3]}, "missing or unknown: x, z"),
        (model(), ["a", "b", "c"], "cannot be converted safely"),
        (model(), [[1, 2, 3], [4]], "not an array"),
        (model(chunk_sizes=(4, 8)), np.zeros((5, 3)), "chunks of 4, 8 timesteps, not 5"),
        (TWO, [1, 2], "dict of arrays by name"),
        (TWO, {"tokens": [1.5], "rate": [1.0]}, "'tokens' is int32; float64 cannot be converted safely"),
        (TWO, {"tokens": [1 << 40], "rate": [1.0]}, "out of its range"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(of: Model, x: object, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        lay_out(of, x)
    assert says in str(caught.value)


def test_inputs_of_different_length_are_refused() -> None:
    both = model(TensorSpec("a", F4, (), has_time_axis=True), TensorSpec("b", F4, (), has_time_axis=True))
    for b in ([1, 2, 3], 1):
        with pytest.raises(InvalidArgument, match="differ in their number of timesteps"):
            lay_out(both, {"a": [1, 2], "b": b})


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1, 2], "<i8"),
        ([1, 2], "<f4"),
        ([1, 2], "u1"),
        ([1.5], "<f2"),
        ([True], "<f4"),
        (np.array([1.5], ">f8"), "<f4"),
    ],
)
def test_safe_conversions(value: object, dtype: str) -> None:
    assert convert(value, np.dtype(dtype), "x").dtype == np.dtype(dtype)


@pytest.mark.parametrize(("value", "dtype"), [([1.0], "<i8"), ([300], "u1"), ([-1], "u1"), ([1], "?"), ([1j], "<f4")])
def test_unsafe_conversions(value: object, dtype: str) -> None:
    with pytest.raises(InvalidArgument):
        convert(value, np.dtype(dtype), "x")


def test_states_by_name() -> None:
    [tensor] = state_tensors(model(), {"lstm/h": np.ones((1, 4))})
    assert (tensor.name, list(tensor.shape)) == ("lstm/h", [1, 4])
    for values in ({"lstm": np.ones((1, 4))}, {"lstm/h": np.ones(4)}):
        with pytest.raises(InvalidArgument, match="lstm/h"):
            state_tensors(model(), values)


def test_names_of_states_and_layers() -> None:
    check_names(model(), ["lstm", "lstm/c"])
    with pytest.raises(InvalidArgument, match="no state or layer is named 'gru'"):
        check_names(model(), ["gru"])


def test_a_mask_has_a_value_a_timestep() -> None:
    chunk = lay_out(model(), np.zeros((3, 3)))
    assert to_mask([True, False, 2], chunk) == b"\x01\x00\x01"
    for mask in ([True], True):
        with pytest.raises(InvalidArgument):
            to_mask(mask, chunk)


def test_outputs_lose_the_time_axis_of_a_single_timestep_and_can_be_written() -> None:
    tensors = [to_tensor(np.ones((1, 2), F4), "y"), to_tensor(np.ones(2, F4), "z")]
    outputs = to_outputs(model(), tensors, single=True, sequences=True)
    assert isinstance(outputs, dict)
    assert outputs["y"].shape == outputs["z"].shape == (2,)
    outputs["y"] += 1
