import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from recurra.server.engine.digest import digests, salt

DTYPES = [np.dtype(code) for code in ("<f4", "<f8", "<f2", "i1", "<i2", "<i4", "<i8", "u1", "?")]
SALT = np.array([5], np.uint64)


@st.composite
def batches(draw, least_rows=1):
    """Several inputs of one batch, and each operation's salt."""
    rows = draw(st.integers(least_rows, 6))
    shapes = st.lists(st.integers(1, 5), max_size=3).map(lambda shape: (rows, *shape))
    inputs = draw(st.lists(npst.arrays(st.sampled_from(DTYPES), shapes), min_size=1, max_size=3))
    salts = draw(npst.arrays(np.uint64, rows))
    return inputs, salts


def row(inputs, at):
    return [array[at : at + 1] for array in inputs]


@given(batches(), st.data())
def test_equal_inputs_have_equal_digests_wherever_they_lie_in_memory(batch, data):
    inputs, salts = batch
    expected = digests(inputs, salts)
    assert expected.shape == (len(salts), 2)
    assert expected.dtype == np.uint64
    assert (digests([array.copy() for array in inputs], salts) == expected).all()
    assert (digests([np.asfortranarray(array) for array in inputs], salts) == expected).all()
    apart = [np.repeat(array, 2, axis=0)[::2] for array in inputs]
    assert (digests(apart, salts) == expected).all()


@given(batches(least_rows=2), st.data())
def test_a_digest_in_a_batch_is_that_of_the_row_alone_at_any_place(batch, data):
    inputs, salts = batch
    together = digests(inputs, salts)
    for at in range(len(salts)):
        assert (digests(row(inputs, at), salts[at : at + 1])[0] == together[at]).all()
    order = np.array(data.draw(st.permutations(range(len(salts)))))
    assert (digests([array[order] for array in inputs], salts[order]) == together[order]).all()


@given(batches(), st.data())
def test_any_bit_that_differs_makes_another_digest(batch, data):
    inputs, salts = batch
    expected = digests(inputs, salts)
    which = data.draw(st.integers(0, len(inputs) - 1), label="input")
    changed = [array.copy() for array in inputs]
    flat = changed[which].reshape(len(salts), -1).view(np.uint8)
    at = data.draw(st.integers(0, len(salts) - 1), label="row")
    byte = data.draw(st.integers(0, flat.shape[1] - 1), label="byte")
    flat[at, byte] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    different = (digests(changed, salts) != expected).all(1)
    assert different.tolist() == [other == at for other in range(len(salts))]


def test_every_single_bit_of_a_chunk_counts_the_sign_of_zero_too():
    chunk = np.zeros((1, 4, 3), np.float32)
    seen = {digests([chunk], SALT).tobytes()}
    for bit in range(8 * chunk.nbytes):
        changed = chunk.copy()
        changed.view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
        seen.add(digests([changed], SALT).tobytes())
    seen.add(digests([-chunk], SALT).tobytes())
    assert len(seen) == 1 + 8 * chunk.nbytes + 1


@given(batches(), st.integers(1, 2**64 - 1))
def test_another_salt_makes_another_digest(batch, change):
    inputs, salts = batch
    assert (digests(inputs, salts ^ np.uint64(change)) != digests(inputs, salts)).any(1).all()


def test_the_place_of_a_value_counts():
    places = [digests([np.eye(64, dtype=np.float32)[at : at + 1]], SALT).tobytes() for at in range(64)]
    assert len(set(places)) == 64


def test_what_is_longer_by_zeros_or_cut_into_inputs_elsewhere_is_another_input():
    def of(*shapes):
        return digests([np.zeros((1, *shape), np.float32) for shape in shapes], SALT).tobytes()

    different = [
        of((1,)),
        of((2,)),
        of((1, 2)),
        of((2, 1)),
        of((1, 1)),
        of((1,), (2,)),
        of((2,), (1,)),
        of(()),
        of((), ()),
    ]
    assert len(set(different)) == len(different)
    bytes_ = [digests([np.zeros((1, size), np.int8)], SALT).tobytes() for size in range(1, 9)]
    assert len(set(bytes_)) == 8  # padded to whole words


def test_operations_without_an_input_are_told_apart_by_their_salt():
    salts = np.array([salt("reset"), salt("end"), salt("reset")], np.uint64)
    first, second, third = digests([], salts)
    assert (first == third).all()
    assert (first != second).all()


parts = st.lists(
    st.integers() | st.booleans() | st.text(max_size=5) | npst.arrays(np.int16, st.integers(0, 3)),
    min_size=1,
    max_size=4,
)


def told(parts):
    return [part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode() for part in parts]


@given(parts, parts)
def test_a_salt_names_its_parts_and_where_each_ends(one, other):
    assert 0 <= salt(*one) < 1 << 64
    assert (salt(*one) == salt(*other)) == (told(one) == told(other))


@given(st.text(min_size=1, max_size=8), st.integers(0, 8))
def test_parts_that_read_the_same_together_are_not_the_same(text, at):
    assume(0 < at < len(text))
    assert salt(text) != salt(text[:at], text[at:])


# A retry may reach a replica of another release: these stay for ever.
def test_digests_stay_what_they_are():
    assert salt(1, "a", np.arange(3, dtype="<i4")) == 0x51C4A77DF1F5E77F
    inputs = [np.arange(12, dtype="<f4").reshape(2, 2, 3) - 5, np.array([[1, -2, 3], [4, 5, -6]], "i1")]
    assert [
        [f"{word:016x}" for word in row] for row in digests(inputs, np.array([0, salt("x")], np.uint64)).tolist()
    ] == [
        ["30b6b3536f52ea23", "71dfbb6f2d8a71c4"],
        ["737d50e0d1247688", "66984b812f03a39a"],
    ]
