import numpy as np
import pytest

from recurra.models import ModelRefused
from recurra.models.export import example


def test_words_are_sizes_that_may_be_any():
    (x,) = example.parse("x", "float32[ batch, time,8 ]")
    assert (x.name, x.dtype, x.dims, x.free) == ("x", np.float32, ("batch", "time", 8), {0: "batch", 1: "time"})
    (scalar,) = example.parse("rate", "int64[]")
    assert (scalar.dtype, scalar.dims, scalar.array({}).shape) == (np.int64, (), ())


def test_a_tuple_has_a_name_for_each_part():
    parts = example.parse("hx", "(float32[1,batch,4], float32[1,batch,6])")
    assert [(part.name, part.dims) for part in parts] == [("hx_0", (1, "batch", 4)), ("hx_1", (1, "batch", 6))]
    assert [part.name for part in example.parse("hx", "(float32[batch,4])")] == ["hx_0"]


def test_examples_share_the_sizes_of_words_and_nothing_else():
    x, h, c = (
        example.parse(name, text)[0]
        for name, text in {"x": "float32[n,t,3]", "h": "float32[n,t]", "c": "int64[t,n]"}.items()
    )
    sizes = example.sizes([x, h, c])
    assert len(set(sizes.values()) | {1}) == 3
    assert (x.array(sizes).shape, c.array(sizes).shape) == ((sizes["n"], sizes["t"], 3), (sizes["t"], sizes["n"]))
    assert not np.array_equal(x.array(sizes)[..., 0], h.array(sizes))
    assert (c.array(sizes) == 1).all()


@pytest.mark.parametrize(
    "text", ["", "float32", "float32[batch", "text[batch]", "float32[batch] 3", "float32[a],float32[b]", "(3)"]
)
def test_what_is_no_tensor_is_refused_with_the_way_to_write_it(text):
    with pytest.raises(ModelRefused, match=r"write it as x=float32\[batch,time,8\], or \("):
        example.parse("x", text)


def test_options_are_told_by_name():
    assert example.told(["x=float32[n,3]", "h = int64[n]"]) == {"x": "float32[n,3]", "h": " int64[n]"}
    with pytest.raises(ModelRefused, match=r"'float32\[n\]' names no input"):
        example.told(["float32[n]"])
