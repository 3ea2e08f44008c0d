"""What no output needs is left out: slices that are whole, branches never taken, nodes that nothing reads."""

from collections import Counter
from pathlib import Path

import graphs
import numpy as np
import onnx
import pytest
from onnx import ModelProto

from recurra.models import ModelConfig, branches
from recurra.models.dead import bury
from recurra.models.graph import walk
from recurra.models.prepare import prepare
from recurra.models.slices import trim

CASES = Path(__file__).parents[1] / "parity" / "cases"


def ops(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in walk(model.graph))


def model(nodes: str, weights: str = "") -> ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, T] x) => (float[A, B] y) {weights} {{ {nodes} }}'
    return onnx.parser.parse_model(text)


def test_a_node_that_no_output_needs_is_taken_out_at_any_depth():
    built = model("""
        yes = Constant <value = bool {1}> ()
        unread = Neg (x)
        neither = Abs (unread)
        y, z = If (yes) <then_branch = a () => (float[A, B] a1, float[A, B] a2) {
                a1 = Neg (x)
                dead = Abs (a1)
                a2 = Identity (x)
            }, else_branch = b () => (float[A, B] b1, float[A, B] b2) {
                b1 = Identity (x)
                b2 = Identity (x)
            }>
        from_outside = Exp (z)
    """)
    x = np.ones((2, 3), np.float32)
    expected = graphs.run(built, {"x": x})[0]
    assert bury(built.graph) == 4
    assert ops(built) == {"Constant": 1, "If": 1, "Neg": 1, "Identity": 3}
    np.testing.assert_array_equal(graphs.run(built, {"x": x})[0], expected)


@pytest.mark.parametrize("name", ["torch_lstm", "torch_gru_stacked", "torch_rnn_bidirectional"])
@pytest.mark.parametrize("gpu", [False, True])
def test_what_made_a_lifted_states_zeros_is_not_served(name: str, gpu: bool):  # noqa: FBT001
    built = onnx.load(CASES / name / "1" / "model.onnx")
    assert ops(built)["Shape"]
    prepared = prepare(built, ModelConfig(), Path(), gpu=gpu)
    assert not ops(onnx.load_model_from_string(prepared.content))["Shape"]


@pytest.mark.parametrize(
    ("numbers", "left"),
    [
        (
            "int64[2] s = {0, 0}, int64[2] e = {9, 2147483647}, int64[2] a = {0, 1}, int64[2] i = {1, 1}",
            [[0], [9], [0], [1]],
        ),
        (
            "int64[2] s = {0, 1}, int64[2] e = {9223372036854775807, 3}, int64[2] a = {0, 1}, int64[2] i = {1, 1}",
            [[1], [3], [1], [1]],
        ),
        ("int64[1] s = {0}, int64[1] e = {2147483647}, int64[1] a = {1}, int64[1] i = {1}", []),
        ("int64[1] s = {-1}, int64[1] e = {-2147483648}, int64[1] a = {1}, int64[1] i = {-1}", None),
        ("int64[1] s = {0}, int64[1] e = {2147483647}, int64[1] a = {1}, int64[1] i = {2}", None),
        ("int64[1] s = {1}, int64[1] e = {2147483647}, int64[1] a = {1}, int64[1] i = {1}", None),
    ],
)
def test_a_slice_loses_the_axes_that_it_leaves_whole(numbers: str, left: list[list[int]] | None):
    built = model("y = Slice (x, s, e, a, i)", f"<{numbers}>")
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    expected = graphs.run(built, {"x": x})[0]
    before = built.SerializeToString()
    trim(built.graph)
    if left is None:
        assert built.SerializeToString() == before
    else:
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in built.graph.initializer}
        assert [weights[name] for name in built.graph.node[0].input[1:]] == left
        assert built.graph.node[0].op_type == ("Slice" if left else "Identity")
    np.testing.assert_array_equal(graphs.run(built, {"x": x})[0], expected)


IF = """
    y = If (c) <then_branch = a () => (float[A, B] a1) { a1 = Neg (x) },
        else_branch = b () => (float b1) { b1 = Identity (k) }>
"""
AMONG = """
    some = Constant <value = int64[2] {1, 2}> ()
    two = Constant <value = int64 {2}> ()
    each = Equal (some, two)
    found = Cast <to = 7> (each)
    any = ReduceMax <keepdims = 0> (found)
    c = Cast <to = 9> (any)
"""


@pytest.mark.parametrize(
    ("condition", "left"),
    [
        ("e = Equal (k, k) c = Not (e) k2 = Neg (k)", "Identity"),
        (AMONG, "Neg"),
        ("m = ReduceMax <keepdims = 0> (x) c = Cast <to = 9> (m)", "If"),
        ("c = Constant <value = bool[0] {}> ()", "If"),
        ("r = RandomUniform <shape = [1]> () m = ReduceMax <keepdims = 0> (r) c = Cast <to = 9> (m)", "If"),
    ],
)
def test_a_branch_whose_condition_is_made_of_constants_is_settled(condition: str, left: str):
    built = model(f"k = Constant <value = float {{0}}> () {condition} {IF}")
    branches.settle(built)
    bury(built.graph)
    assert (ops(built)["If"] == 1) == (left == "If")
    assert ops(built)[left]


def test_very_many_branches_take_no_time():
    branches_ = " ".join(f"x{i + 1} = {IF.strip()[4:]}".replace("(x)", f"(x{i})") for i in range(1000))
    no, yes = (
        branches_.replace("(c)", "(unknown)", 500),
        "k = Constant <value = float {0}> () c = Constant <value = bool {1}> ()",
    )
    built = model(
        f"{yes} x0 = Identity (x) m = ReduceMax <keepdims = 0> (x) unknown = Cast <to = 9> (m) {no} y = Neg (x1000)"
    )
    branches.settle(built)
    assert ops(built)["If"] == 500
