"""A graph for single timesteps gives what the graph for any number gives for one."""

from collections import Counter
from pathlib import Path

import graphs
import loops
import numpy as np
import onnx
import pytest
from onnx import ModelProto

from recurra.models import Model, load
from recurra.models.graph import walk
from recurra.models.program import Program
from recurra.models.samples import Samples
from recurra.models.single import single

CASES = Path(__file__).parents[1] / "parity" / "cases"
GIVEN = [  # a case, and the ops that its graph has for any number of timesteps alone
    ("keras_lstm_relu", {"Scan"}),
    ("keras_rnn_custom_cell", {"Scan"}),
    ("torch_gru_cell_loop", {"Scan"}),
    ("torch_rnn_relu", {"Scan"}),
    ("keras_masking_bidirectional", {"Scan", "ReverseSequence"}),
    ("keras_lstm_go_backwards", {"ReverseSequence", "Shape"}),
    ("keras_nested_models", {"Shape"}),
    ("torch_held", {"Shape"}),
]


def ops(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in walk(model.graph))


def written(model: Model) -> ModelProto:
    made = onnx.load_model_from_string(model.program.session.model)
    single(made, {port.spec.name: port.time_axis for port in model.program.layout.inputs if port.time_axis is not None})
    return made


def same(model: Model, made: ModelProto) -> None:
    one = Program(model.program.session.another(made.SerializeToString()), model.program.layout)
    for rows in (1, 3):
        samples = Samples(model.signature)
        states = [samples.fresh(rows)] * 2
        for _ in range(3):
            inputs = samples.inputs(rows, 1)
            runs = [program.run(inputs, old) for program, old in zip((model.program, one), states, strict=True)]
            states = [news for _, news in runs]
            for found, expected in zip(*([*outputs, *news] for outputs, news in runs), strict=True):
                np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("name", "gone"), GIVEN)
def test_a_timestep_is_the_same_without_what_only_time_needs(name: str, gone: set[str]):
    model = load(CASES / name, provider="cpu", made_for="cuda")
    assert gone <= set(ops(onnx.load_model_from_string(model.program.session.model)))
    made = written(model)
    assert not gone & set(ops(made))
    same(model, made)


@pytest.mark.parametrize("opset", [11, 12, 13, 18])
def test_a_scan_is_written_out_in_the_files_opset(opset: int, tmp_path: Path):
    built, _ = loops.scan(op="RNN")
    del built.opset_import[0]
    built.opset_import.append(onnx.helper.make_opsetid("", opset))
    shape = next(node for node in built.graph.node if node.op_type == "Shape")
    if opset < 15:  # Shape of a part is younger
        sizes = onnx.helper.make_node("Shape", ["x"], ["sizes"])
        built.graph.node.insert(0, sizes)
        shape.CopyFrom(onnx.helper.make_node("Gather", ["sizes", "first"], ["rows"]))
        built.graph.initializer.append(graphs.const("first", [0]))
    model = load(graphs.write(built, tmp_path), provider="cpu")
    made = written(model)
    onnx.checker.check_model(made)
    assert not ops(made)["Scan"]
    same(model, made)


SCAN = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, T, 3] x, float[N, 3] h) => (float[A, B, C] y, float[D, E] end)
{
    end, y = Scan <num_scan_inputs = 1, scan_input_axes = [AXIS], body = body
        (float[D, 3] before, float[D, 3] part) => (float[D, 3] after, float[D, 3] out) {
            after = Add (before, part)
            out = Neg (after)
        }> (h, x)
}
"""


@pytest.mark.parametrize(("axis", "scans"), [(1, 0), (0, 1)])
def test_only_a_scan_over_time_has_one_timestep(axis: int, scans: int):
    """A batch of one row is none: the same graph is for all sizes of batches."""
    model = onnx.parser.parse_model(SCAN.replace("AXIS", str(axis)))
    feed = {"x": np.ones((1, 1, 3), np.float32), "h": np.full((1, 3), 2, np.float32)}
    expected = graphs.run(model, feed)
    single(model, {"x": 1})
    assert ops(model)["Scan"] == scans
    for found, each in zip(graphs.run(model, feed), expected, strict=True):
        np.testing.assert_array_equal(found, each)


def test_a_reshape_that_takes_sizes_as_they_are_is_left_alone():
    """A size of 0 means "as it is", and then -1 might not be what is missing."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, T, 3] x) => (float[A, B, C] y) <int64[1] same = {0}, int64[1] three = {3}, int64[1] first = {0}>
    {
        sizes = Shape (x)
        rows = Gather (sizes, first)
        shape = Concat <axis = 0> (rows, same, three)
        y = Reshape (x, shape)
    }
    """
    model = onnx.parser.parse_model(text)
    single(model, {"x": 1})
    x = np.ones((2, 1, 3), np.float32)
    assert ops(model)["Shape"] == 1
    np.testing.assert_array_equal(graphs.run(model, {"x": x})[0], x)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("float", "a = Add (b, one) c = Sub (a, b) k = Identity (c)"),  # the sum is rounded
        ("int64", "a = Mul (b, b) c = Mul (a, b) k = Cast <to = 1> (c)"),  # the product wraps around
        ("int64", "a = Mul (b, b) c = Cast <to = 6> (a) k = Cast <to = 1> (c)"),
    ],
)
def test_numbers_that_their_type_has_not_are_not_known(kind: str, numbers: str):
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, T, 3] x) => (float[A, B, C] y) <{kind} b = {{16777216}}, {kind} one = {{1}}>
    {{
        {numbers}
        y = Add (x, k)
    }}
    """
    model = onnx.parser.parse_model(text)
    x = np.ones((2, 1, 3), np.float32)
    expected = graphs.run(model, {"x": x})
    single(model, {"x": 1})
    np.testing.assert_array_equal(graphs.run(model, {"x": x})[0], expected[0])


def test_a_size_that_is_declared_as_less_than_none_may_be_any():
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, T, 3] x) => (float[A] y) <int64[1] zero = {0}, int64[1] one = {1}, float two = {2}>
    {
        sizes = Shape (x)
        rows = Slice (sizes, zero, one)
        y = Expand (two, rows)
    }
    """
    model = onnx.parser.parse_model(text)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    single(model, {"x": 1})
    assert graphs.run(model, {"x": np.ones((2, 1, 3), np.float32)})[0].tolist() == [2, 2]


@pytest.mark.parametrize("left_out", [["y"], ["y", "h"]])
def test_outputs_that_are_left_out_stay_so(left_out: list[str]):
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[T, N, 3] x, float[1, N, 2] h0, float[1, N, 2] c0) => (float[1, N, 2] end)
        <float[3] w3 = {0.1, 0.2, 0.3}, int64[3] wide = {1, 8, 3}, int64[3] high = {1, 8, 2}, float half = {0.5}>
    {
        w = Expand (w3, wide)
        r = Expand (half, high)
        y, h, c = LSTM <hidden_size = 2> (x, w, r, , , h0, c0)
        end = Neg (c)
    }
    """
    model = onnx.parser.parse_model(text)
    lstm = next(node for node in model.graph.node if node.op_type == "LSTM")
    lstm.output[:] = ["" if name in left_out else name for name in lstm.output]
    feed = {"x": np.ones((1, 2, 3), np.float32), **dict.fromkeys(["h0", "c0"], np.ones((1, 2, 2), np.float32))}
    expected = graphs.run(model, feed)[0]
    single(model, {"x": 0})
    np.testing.assert_array_equal(graphs.run(model, feed)[0], expected)


def test_sizes_whose_type_is_not_known_are_left_as_they_are():
    """Of what bodies have, too, by the same name, no type is known."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, T, 3] x, bool c) => (float[A, B, C] y) <int64[1] one = {1}, int64[1] three = {3}>
    {
        size = Concat <axis = 0> (one, three)
        t = If (c) <then_branch = a () => (float[A, B, C] t1) { inner = Concat <axis = 0> (one, three)
            t1 = Expand (x, inner) }, else_branch = b () => (float[A, B, C] t2) { t2 = Abs (x) }>
        y = Expand (t, size)
    }
    """
    model = onnx.parser.parse_model(text)
    branch = model.graph.node[1].attribute[0].g
    branch.node[0].output[0] = branch.node[1].input[1] = "size"
    single(model, {"x": 1})
    assert ops(model)["Concat"] == 2
