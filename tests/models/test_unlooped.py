"""A counted Loop gives as a Scan what it gives as a Loop; what is not sure to be counted stays one."""

from collections import Counter
from pathlib import Path
from typing import Any

import graphs
import loops
import numpy as np
import onnx
import pytest
from onnx import ModelProto

from recurra.models import Model, load, unlooped
from recurra.models.graph import walk
from recurra.models.samples import Samples

CASES = Path(__file__).parents[1] / "parity" / "cases"
LOOPS = (
    "keras_masking_bidirectional",
    "keras_rnn_custom_cell",
    "torch_gru_cell_loop",
    "torch_lstm_cell_loop",
    "torch_rnn_cell_loop",
)

LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, T, 3] x, float[N, 3] h) => (float[A, B, C] y, float[N, 3] h_new)
<int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, bool yes = {1}, int64 forever = {4611686018427387904},
 int64 two = {2}, float half = {0.5}, int64[1] far = {9223372036854775807}>
{
    sizes = Shape(x)
    time = Gather <axis = 0> (sizes, one)
    h_new, y = Loop (time, yes, h) <body = body
        (int64 turn, bool going, float[N, 3] before) => (bool on, float[N, 3] after, float[N, 3] out) {
            on = Identity (going)
            xt = Gather <axis = 1> (x, turn)
            kept = Mul (before, half)
            after = Add (kept, xt)
            out = Neg (after)
        }>
}
"""
COUNTER = [
    ("h_new, y = Loop (time, yes, h)", "count, h_new, y = Loop (forever, yes, zero, h)"),
    ("float[N, 3] before) => (bool on,", "int64 at, float[N, 3] before) => (bool on, int64 next,"),
    ("on = Identity (going)", "next = Add (at, one)\n on = Less (next, time)"),
    ("(x, turn)", "(x, at)"),
]
LIST = [
    ("h_new, y = Loop (time, yes, h)", "none = SequenceEmpty ()\n h_new, ys = Loop (time, yes, h, none)"),
    ("float[N, 3] before)", "float[N, 3] before, seq(float[N, 3]) list)"),
    ("float[N, 3] out)", "seq(float[N, 3]) list_new)"),
    ("out = Neg (after)", "out = Neg (after)\n list_new = SequenceInsert (list, out)"),
]
STACK = ("        }>", "        }>\n y = ConcatFromSequence <axis = 1, new_axis = 1> (ys)")

Changes = list[tuple[str, str]]
TWICE = (
    "        }>",
    """        }>
    a = ConcatFromSequence <axis = 1, new_axis = 1> (ys)
    b = ConcatFromSequence <axis = -2, new_axis = 1> (ys)
    y = Sub (a, b)""",
)

COUNTED: dict[str, Changes] = {
    "trip count": [],
    "condition alone": [*COUNTER, ("(forever,", "(,")],
    "trip count without end": COUNTER,
    "trip count and condition": [
        *COUNTER,
        ("(forever, yes", "(time, less"),
        ("count, h", "less = Less (zero, time)\n count, h"),
    ],
    "greater": [*COUNTER, ("Less (next, time)", "Greater (time, next)")],
    "less or equal": [*COUNTER, ("on = Less (next, time)", "last = Sub (time, one)\n on = LessOrEqual (next, last)")],
    "two conditions": [
        *COUNTER,
        ("on = Less (next, time)", "a = Less (next, time)\n b = Less (turn, time)\n on = And (a, b)"),
    ],
    "condition as it came is read": [("out = Neg (after)", "add = Cast <to = 1> (going)\n out = Add (after, add)")],
    "condition as it came, of rank 1, is given out": [
        ("out = Neg (after)", "out = Cast <to = 1> (going)"),
        ("bool yes = ", "bool[1] yes = "),
        ("bool going, ", "bool[1] going, "),
        ("(float[A, B, C] y, ", "(float[A, B] y, "),
    ],
    "number of the iteration is read": [
        ("out = Neg (after)", "f = Cast <to = 1> (turn)\n out = Add (after, f)"),
    ],
    "counter is read": [*COUNTER, ("out = Neg (after)", "f = Cast <to = 1> (at)\n out = Add (after, f)")],
    "counter is read behind": [
        *COUNTER,
        (", y = Loop", ", ys = Loop"),
        ("        }>", "        }>\n end = Cast <to = 1> (count)\n y = Add (ys, end)"),
    ],
    "steps of a part of the sequence": [
        ("Gather <axis = 1> (x, turn)", "Gather <axis = 1> (whole, turn)"),
        ("xt =", "whole = Slice (x, first, far, first)\n xt ="),
    ],
    "read twice": [("out = Neg (after)", "again = Gather <axis = 1> (x, turn)\n out = Add (after, again)")],
    "axis from the end": [("Gather <axis = 1> (x", "Gather <axis = -2> (x")],
    "given out as it was read": [
        ("out = Neg (after)", "out = Identity (xt)"),
        ("bool on, float[N, 3] after, float[N, 3] out", "bool on, float[N, 3] after, float[N, 3] xt"),
    ],
    "given out twice": [
        ("bool on, float[N, 3] after, float[N, 3] out", "bool on, float[N, 3] after, float[N, 3] after"),
    ],
    "output not read": [
        (", y = Loop", ", dropped, y = Loop"),
        ("float[N, 3] out)", "float[N, 3] unread, float[N, 3] out)"),
        ("out = Neg (after)", "out = Neg (after)\n unread = Abs (after)"),
    ],
    "another read by the number before": [
        ("out = Neg (after)", "b = Sub (turn, turn)\n start = Gather <axis = 1> (x, b)\n out = Add (after, start)"),
    ],
    "list": [*LIST, STACK],
    "list, stacked twice": [*LIST, TWICE],
    "batch and time of one name": [("float[N, T, 3] x", "float[T, T, 3] x")],
    "time of a fixed size": [("float[N, T, 3] x", "float[N, 5, 3] x")],
}

LOOPS_STILL: dict[str, Changes] = {
    "condition of data": [
        ("on = Identity (going)", "m = ReduceMax <keepdims = 0> (before)\n on = Less (m, half)"),
    ],
    "condition of data besides": [
        *COUNTER,
        (
            "on = Less (next, time)",
            "m = ReduceMax <keepdims = 0> (before)\n a = Less (m, half)\n b = Less (next, time)\n on = And (a, b)",
        ),
    ],
    "one timestep less": [("Loop (time,", "Loop (less,"), ("h_new, y", "less = Sub (time, one)\n h_new, y")],
    "batch and time of one name, and rows are read": [
        ("float[N, T, 3] x, float[N, 3] h", "float[T, T, 3] x, float[T, 3] h"),
        ("Gather <axis = 1> (x, turn)", "Gather <axis = 0> (x, turn)"),
    ],
    "half as many": [("Loop (time,", "Loop (less,"), ("h_new, y", "less = Div (time, two)\n h_new, y")],
    "a fixed number": [("Loop (time,", "Loop (two,")],
    "trip count of data": [
        ("Loop (time,", "Loop (data,"),
        ("h_new, y", "m = ReduceMax <keepdims = 0> (h)\n data = Cast <to = 7> (m)\n h_new, y"),
    ],
    "counter from one": [*COUNTER, ("yes, zero, h)", "yes, one, h)")],
    "counter by two": [*COUNTER, ("Add (at, one)", "Add (at, two)")],
    "condition one late": [*COUNTER, ("Less (next, time)", "Less (at, time)")],
    "condition one late, or equal": [*COUNTER, ("Less (next, time)", "LessOrEqual (next, time)")],
    "never begun": [("Loop (time, yes", "Loop (time, no"), ("h_new, y", "no = Not (yes)\n h_new, y")],
    "read from the end": [
        ("(x, turn)", "(x, back)"),
        ("xt =", "t1 = Sub (time, one)\n back = Sub (t1, turn)\n xt ="),
    ],
    "another size": [("Gather <axis = 0> (sizes, one)", "Gather <axis = 0> (sizes, zero)")],
    "carried value that grows": [
        ("h_new, y = Loop (time, yes, h)", "h_new, y, ys = Loop (time, yes, h, h)"),
        ("float[N, 3] before)", "float[N, 3] before, float[M, 3] grown)"),
        ("float[N, 3] out)", "float[M, 3] more, float[N, 3] out)"),
        ("out = Neg (after)", "out = Neg (after)\n more = Concat <axis = 0> (grown, out)"),
    ],
    "list that is measured": [*LIST, STACK, ("y = Concat", "length = SequenceLength (ys)\n y = Concat")],
    "list put together along an axis that is there": [
        *LIST,
        ("        }>", "        }>\n y = ConcatFromSequence <axis = 1> (ys)"),
    ],
    "list that is read in the body": [
        *LIST,
        STACK,
        ("list_new =", "length = SequenceLength (list)\n list_new ="),
    ],
    "old opset": [('"" : 17', '"" : 10')],
}


def parsed(changes: Changes) -> ModelProto:
    text = LOOP
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return onnx.parser.parse_model(text)


def ops(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in walk(model.graph))


def served(model: Model) -> Counter[str]:
    return ops(onnx.load_model_from_string(model.program.session.model))


@pytest.mark.parametrize("name", COUNTED)
def test_a_counted_loop_is_the_same_as_a_scan(name: str):
    model = parsed(COUNTED[name])
    scan = ModelProto()
    scan.CopyFrom(model)
    assert unlooped.rewrite(scan, {"h": "h_new"}) == 1
    assert (ops(scan)["Loop"], ops(scan)["Scan"]) == (0, 1)
    random = np.random.default_rng(4)
    for rows, timesteps in ((1, 1), (1, 5), (3, 5), (3, 1), (2, 8)):
        if "fixed" in name and timesteps != 5:
            continue
        feed = {
            "x": random.normal(size=(rows, timesteps, 3)).astype(np.float32),
            "h": random.normal(size=(rows, 3)).astype(np.float32),
        }
        for found, expected in zip(graphs.run(scan, feed), graphs.run(model, feed), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "more",
    [
        ["a0 = Mul (zero, zero)", *(f"a{i + 1} = Add (a{i}, a{i})" for i in range(60)), "trips = Add (time, a60)"],
        ["a0 = Identity (time)", *(f"a{i + 1} = Add (a{i}, zero)" for i in range(3000)), "trips = Identity (a3000)"],
        ["a0 = Mul (two, two)", *(f"a{i + 1} = Mul (a{i}, a{i})" for i in range(60)), "trips = Add (time, a60)"],
    ],
)
def test_sizes_made_in_very_many_steps_take_no_time(more: list[str]):
    model = parsed([("h_new, y = Loop (time,", "\n".join([*more, "h_new, y = Loop (trips,"]))])
    assert unlooped.rewrite(model, {"h": "h_new"}) in (0, 1)


def test_a_condition_made_of_itself_again_and_again_takes_no_time():
    both = "\n".join(f"c{i + 1} = And (c{i}, c{i})" for i in range(60))
    model = parsed([("on = Identity (going)", f"c0 = Identity (going)\n{both}\non = Identity (c60)")])
    assert unlooped.rewrite(model, {"h": "h_new"}) == 1


@pytest.mark.parametrize("name", LOOPS_STILL)
def test_a_loop_that_is_not_sure_to_be_counted_stays_one(name: str):
    model = parsed(LOOPS_STILL[name])
    before = model.SerializeToString()
    assert unlooped.rewrite(model, {"h": "h_new"}) == 0
    assert model.SerializeToString() == before


def test_a_loop_in_a_branch_is_replaced_where_its_shapes_are_known():
    head, body = LOOP.split("{\n", 1)
    branch = "{" + body.replace("h_new, y = Loop", "h2, y2 = Loop")
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, T, 3] x, float[N, 3] h, bool c) => (float[A, B, C] y, float[N, 3] h_new)
    {head[head.index("<int64") :]}
    {{
        h_new, y = If (c) <then_branch = then () => (float[N, 3] h2, float[A, B, C] y2) {branch},
            else_branch = other () => (float[N, 3] h3, float[A, B, C] y3) {{
                h3 = Identity (h)
                y3 = Transpose <perm = [1, 0, 2]> (x)
            }}>
    }}
    """
    model = onnx.parser.parse_model(text)
    x, h = np.ones((2, 4, 3), np.float32), np.ones((2, 3), np.float32)
    feeds = [{"x": x, "h": h, "c": np.array(flag)} for flag in (True, False)]
    expected = [graphs.run(model, feed) for feed in feeds]
    assert unlooped.rewrite(model, {}) == 1
    for feed, both in zip(feeds, expected, strict=True):
        for found, each in zip(graphs.run(model, feed), both, strict=True):
            np.testing.assert_array_equal(found, each)


def same(one: Model, other: Model) -> None:
    """In chunks that follow each other, of one length and of several."""
    assert (one.ragged is None) == (other.ragged is None)
    programs = [(one.program, other.program), *([(one.ragged, other.ragged)] if one.ragged else [])]
    for padded, pair in enumerate(programs):
        for rows in (1, 3):
            samples = Samples(one.signature)
            states = [samples.fresh(rows)] * 2
            for timesteps in (1, 4, 1, 7):
                inputs = samples.inputs(rows, timesteps)
                lengths = np.arange(rows) % timesteps + 1 if padded else None
                runs = [program.run(inputs, old, lengths) for program, old in zip(pair, states, strict=True)]
                states = [news for _, news in runs]
                (ours, news), (theirs, olds) = runs
                for found, expected in zip([*ours, *news], [*theirs, *olds], strict=True):
                    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", LOOPS)
def test_an_exported_loop_is_a_scan_on_a_gpu_and_gives_the_same(name: str):
    cpu, gpu = load(CASES / name, provider="cpu"), load(CASES / name, provider="cpu", made_for="cuda")
    assert (served(cpu)["Loop"] > 0, served(gpu)["Loop"]) == (True, 0)
    assert cpu.layout == gpu.layout  # a session may go from one to the other
    same(cpu, gpu)


@pytest.mark.parametrize(
    ("settings", "scans"),
    [
        ({}, 1),
        ({"op": "LSTM", "initial": "learned"}, 1),
        ({"op": "LSTM", "masked": True, "named": False}, 1),
        ({"initial": "row"}, 1),
        ({"last_only": True}, 1),
        ({"accumulator": "sequence"}, 1),
        ({"accumulator": "scatter", "masked": True}, 1),
        ({"accumulator": "concat"}, 0),
        ({"reverse": True}, 0),
    ],
)
def test_a_layer_that_keras_wrote_as_a_loop_gives_the_same_on_a_gpu(
    settings: dict[str, Any], scans: int, tmp_path: Path
):
    folder = graphs.write(loops.keras(**settings)[0], tmp_path)
    cpu, gpu = load(folder, provider="cpu"), load(folder, provider="cpu", made_for="cuda")
    assert served(gpu)["Scan"] == scans
    same(cpu, gpu)
