from pathlib import Path

import numpy as np
import pytest

from recurra.models import ModelRefused, Signature, TensorSpec
from recurra.models.series import read

X = TensorSpec("x", np.dtype(np.float32), (3,))
TOKENS = TensorSpec("tokens", np.dtype(np.int64), (), bounds=(0, 10))
SPEAKER = TensorSpec("speaker", np.dtype(np.float32), (2,), has_time_axis=False)


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs, (), ())


def test_an_array_is_one_row_or_several(tmp_path: Path):
    for shape, expected in (((5, 3), (1, 5, 3)), ((2, 5, 3), (2, 5, 3))):
        np.save(tmp_path / "x.npy", np.ones(shape))
        (found,) = read(tmp_path / "x.npy", signature(X))
        assert (found.shape, found.dtype) == (expected, np.float32)


def test_a_table_has_a_row_a_timestep_with_or_without_names(tmp_path: Path):
    for head in ("", "a,b,c\n"):
        (tmp_path / "x.csv").write_text(f"{head}1,2,3\n4,5,6\n\n")
        (found,) = read(tmp_path / "x.csv", signature(X))
        assert found.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    (tmp_path / "x.csv").write_text("1,2,3\n4,5,6\n", "utf-8-sig")  # as Excel marks its files
    assert read(tmp_path / "x.csv", signature(X))[0].tolist() == [[[1, 2, 3], [4, 5, 6]]]
    (tmp_path / "t.csv").write_text("token\n4\n10\n")
    assert read(tmp_path / "t.csv", signature(TOKENS))[0].tolist() == [[4, 10]]


def test_several_inputs_come_by_name(tmp_path: Path):
    np.savez(tmp_path / "both.npz", speaker=np.ones(2), x=np.zeros((4, 3)))
    found = read(tmp_path / "both.npz", signature(X, SPEAKER))
    assert [each.shape for each in found] == [(1, 4, 3), (1, 2)]
    with pytest.raises(ModelRefused, match="gives speaker, x; the model takes x"):
        read(tmp_path / "both.npz", signature(X))


def test_what_the_model_does_not_take_is_refused(tmp_path: Path):
    path = tmp_path / "x.npy"
    for array, spec, reason in (
        (np.ones((5, 4)), X, r"has shape \(1, 5, 4\); the model takes \(time, 3\)"),
        (np.ones(3), X, r"has shape \(3\)"),
        (np.full((5, 3), np.nan), X, "no finite numbers"),
        (np.full((5, 3), 1e300), X, "too large for float32"),
        (np.array([1e30]), TOKENS, "whole numbers from 0 to 10"),
        (np.array([1, 11]), TOKENS, "whole numbers from 0 to 10"),
        (np.array([1.5, 2]), TOKENS, "whole numbers from 0 to 10"),
    ):
        np.save(path, array)
        with pytest.raises(ModelRefused, match=reason):
            read(path, signature(spec))


def test_what_cannot_be_read_is_refused(tmp_path: Path):
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "empty.csv").write_text("a,b,c\n")
    (tmp_path / "text.csv").write_text("1,2,3\n4,five,6\n")
    (tmp_path / "half.npz").write_bytes(b"PK\3\4")
    np.save(tmp_path / "x.npy", np.ones((5, 3)))
    (tmp_path / "x.npy").rename(tmp_path / "alone.npz")
    for name in ("objects.npy", "empty.csv", "text.csv", "missing.npy", "half.npz", "alone.npz"):
        with pytest.raises(ModelRefused, match=r"cannot be read as \.npy, \.npz or \.csv"):
            read(tmp_path / name, signature(X))
