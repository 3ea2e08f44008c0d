from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from recurra.client.ragged import from_lengths, from_mask
from recurra.wire.errors import InvalidArgument

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=7))


@given(MASKS)
def test_packing_and_spreading_run_the_model_over_what_counts(mask: np.ndarray) -> None:
    """A cumulated sum stands for the model: masked timesteps must neither add to it nor show anything new."""
    k, timesteps = mask.shape
    x = np.random.default_rng(0).integers(1, 100, (k, timesteps, 1))
    ragged = from_mask(mask, k, timesteps)
    if ragged is None:
        assert mask.all()
        return
    packed = ragged.pack(x)
    padding = np.arange(timesteps) >= ragged.lengths[:, None]
    packed[padding] = -1_000_000  # whatever the padding is, it must not show
    spread = ragged.spread(np.cumsum(packed, axis=1))
    assert (spread == np.cumsum(x * mask[..., None], axis=1)).all()


@given(MASKS)
def test_a_mask_of_trailing_zeros_needs_no_packing(mask: np.ndarray) -> None:
    mask = -np.sort(-mask.astype(int), axis=1)
    ragged = from_mask(mask, *mask.shape)
    assert ragged is None or ragged.packing is None


@given(st.data())
def test_lengths_are_a_mask(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    ragged = from_lengths(lengths, len(lengths), 5)
    assert (ragged is None) == (min(lengths) == 5)
    if ragged is not None:
        assert ragged.lengths.tolist() == lengths
        assert ragged.packing is None


@pytest.mark.parametrize("lengths", [[1], [1, 6], [-1, 2], [1.0, 2.0]])
def test_lengths_that_do_not_fit(lengths: list[float]) -> None:
    with pytest.raises(InvalidArgument):
        from_lengths(lengths, 2, 5)


def test_a_mask_of_another_shape() -> None:
    with pytest.raises(InvalidArgument):
        from_mask(np.ones((2, 4)), 2, 5)
