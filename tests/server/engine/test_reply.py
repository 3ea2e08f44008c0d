import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from recurra.server.engine import reply
from recurra.server.engine.reply import MAX_REPLY_BYTES

DTYPES = [np.dtype(code) for code in ("<f4", "<f8", "<f2", "i1", "<i2", "<i4", "<i8", "u1", "<u8", "?")]


@given(st.integers(1, 5), st.data())
def test_each_sessions_tensors_come_back_as_they_were(rows, data):
    shapes = st.lists(st.integers(0, 4), max_size=4).map(lambda shape: (rows, *shape))
    tensors = data.draw(st.lists(npst.arrays(st.sampled_from(DTYPES), shapes), min_size=1, max_size=4))
    kept = reply.pack(tensors, rows=len(tensors[0]))
    assert kept.shape[0] == rows
    for row in range(rows):
        back = reply.unpack(kept[row].tobytes(), [tensor.dtype for tensor in tensors])
        assert len(back) == len(tensors)
        for mine, tensor in zip(back, tensors, strict=True):
            assert mine.dtype == tensor.dtype
            assert mine.shape == (1, *tensor.shape[1:])
            assert mine.tobytes() == tensor[row].tobytes()


def test_the_layout_in_memory_does_not_matter():
    tensor = np.arange(24, dtype="f4").reshape(4, 3, 2).transpose(1, 2, 0)
    kept = reply.pack([tensor, tensor[::-1]], rows=len(tensor))
    first, second = reply.unpack(kept[2].tobytes(), [tensor.dtype] * 2)
    assert (first == tensor[2]).all()
    assert (second == tensor[0]).all()


def test_a_reply_of_no_tensors_is_empty():
    assert reply.pack([], rows=3).shape == (3, 0)
    assert reply.unpack(b"", []) == []


@pytest.mark.parametrize("rows", [1, 7])
def test_a_reply_is_kept_up_to_the_cap_and_not_beyond(rows):
    overhead = 1 + 4  # the rank and one size
    fits = np.ones((rows, MAX_REPLY_BYTES - overhead), np.uint8)
    assert reply.pack([fits], rows=rows).shape == (rows, MAX_REPLY_BYTES)
    assert reply.pack([np.ones((rows, MAX_REPLY_BYTES - overhead + 1), np.uint8)], rows=rows).shape == (rows, 0)
    assert reply.pack([fits, np.ones((rows, 1), np.uint8)], rows=rows).shape == (rows, 0)


def test_the_cap_counts_a_session_not_a_batch():
    many = np.ones((1000, 1000), np.uint8)
    assert reply.pack([many], rows=1000).shape == (1000, 1005)


# Records keep replies: what one release wrote, another must read.
def test_the_layout_of_a_kept_reply_stays():
    tensors = [np.array([[1, 2]], "<u2"), np.array([7], "u1")]
    assert reply.pack(tensors, rows=len(tensors[0])).tobytes() == b"\1\2\0\0\0\0\1\0\2\0\7"
