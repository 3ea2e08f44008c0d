import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from recurra.v1 import tensor_pb2
from recurra.wire.errors import InvalidArgument
from recurra.wire.tensors import code_of, dtype_of, to_array, to_arrays, to_tensor

CODES = [code for code in tensor_pb2.DataType.values() if code != tensor_pb2.DATA_TYPE_UNSPECIFIED]
DTYPES = [dtype_of(code) for code in CODES]

dtypes = st.sampled_from(DTYPES)
shapes = npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
arrays = npst.arrays(dtypes, shapes)


def test_every_data_type_but_the_unspecified_one_is_a_numpy_dtype():
    assert len(set(DTYPES)) == len(CODES) == 12
    assert [code_of(dtype) for dtype in DTYPES] == CODES


@given(arrays, st.text())
def test_an_array_comes_back_as_it_was(array, name):
    tensor = tensor_pb2.Tensor.FromString(to_tensor(array, name).SerializeToString())
    back = to_array(tensor)
    assert tensor.name == name
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()  # every bit, so that a NaN stays which it was


@given(arrays)
def test_an_array_is_a_read_only_view_of_the_messages_bytes(array):
    back = to_array(to_tensor(array))
    assert not back.flags.owndata
    assert not back.flags.writeable
    owner = back
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, bytes)


@given(arrays, st.randoms(use_true_random=False))
def test_the_layout_in_memory_and_the_byte_order_do_not_matter(array, random):
    axes = random.sample(range(array.ndim), array.ndim)
    turned = array.transpose(axes)[(slice(None, None, -1),) * array.ndim]
    expected = turned.copy()
    for given_ in (turned, turned.astype(turned.dtype.newbyteorder(">"))):
        back = to_array(to_tensor(given_))
        assert back.shape == expected.shape
        assert back.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "dtype", ["complex64", "O", "U3", "S3", "M8[s]", "m8[s]", "longdouble", [("a", "f4")]], ids=str
)
def test_a_dtype_that_the_wire_has_no_code_for_is_refused_by_name(dtype):
    array = np.zeros(2, dtype)
    with pytest.raises(InvalidArgument, match=r"is not supported; use one of .*float32"):
        to_tensor(array)


@pytest.mark.parametrize("code", [tensor_pb2.DATA_TYPE_UNSPECIFIED, 99, -1])
def test_an_unknown_code_is_refused(code):
    with pytest.raises(InvalidArgument, match=f"data type {code} is unknown"):
        to_array(tensor_pb2.Tensor(name="x", dtype=code, shape=[1], data=b"\0"))


@given(arrays, st.integers(-9, 9).filter(bool))
def test_bytes_that_do_not_fill_the_shape_are_refused(array, more):
    tensor = to_tensor(array, "x")
    data = tensor.data + bytes(more) if more > 0 else tensor.data[:more]
    assume(data != tensor.data)
    tensor.data = data
    with pytest.raises(InvalidArgument, match=f"'x' has {len(data)} bytes"):
        to_array(tensor)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([-1], b""),
        ([-1, -1], bytes(4)),
        ([0, -5], b""),
        ([1 << 62, 4], b""),
        ([1 << 40, 0, 1 << 40], b""),
        ([1] * 65, bytes(4)),
        ([(1 << 63) - 1] * 100_000, bytes(4)),  # whose product alone takes seconds
    ],
    ids=[
        "negative",
        "two negatives",
        "negative beside zero",
        "overflow",
        "overflow beside zero",
        "65 axes",
        "many axes",
    ],
)
def test_a_shape_that_no_array_has_is_refused(shape, data):
    tensor = tensor_pb2.Tensor(name="x", dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=shape, data=data)
    with pytest.raises(InvalidArgument, match="tensor 'x'"):
        to_array(tensor)


sizes = st.integers(-2, 4) | st.integers(-(1 << 63), (1 << 63) - 1)


@given(
    st.builds(
        tensor_pb2.Tensor,
        dtype=st.integers(-1, 14),
        shape=st.lists(sizes, max_size=4) | st.lists(st.just(1), max_size=80),
        data=st.binary(max_size=16),
    )
)
def test_any_message_is_an_array_of_its_shape_or_an_invalid_argument(tensor):
    try:
        array = to_array(tensor)
    except InvalidArgument:
        return
    assert array.shape == tuple(tensor.shape)
    assert array.tobytes() == tensor.data


@given(st.binary(min_size=1, max_size=9))
def test_a_boolean_is_a_byte_of_0_or_1(data):
    tensor = tensor_pb2.Tensor(name="x", dtype=tensor_pb2.DATA_TYPE_BOOL, shape=[len(data)], data=data)
    if max(data) <= 1:
        assert to_array(tensor).tolist() == [bool(byte) for byte in data]
    else:
        with pytest.raises(InvalidArgument, match="other than 0 and 1"):
            to_array(tensor)


def test_tensors_come_by_name_each_name_once():
    x, y = to_tensor(np.arange(3), "x"), to_tensor(np.ones((2, 2), "f4"), "y")
    by_name = to_arrays([x, y])
    assert list(by_name) == ["x", "y"]
    assert by_name["x"].tolist() == [0, 1, 2]
    with pytest.raises(InvalidArgument, match="'x' comes twice"):
        to_arrays([x, y, x])
