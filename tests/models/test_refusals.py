"""Each refusal names the node, the reason and the remedy."""

from pathlib import Path

import graphs
import loops
import numpy as np
import pytest
import steps
from onnx import ModelProto, helper

from recurra.models import ModelRefused, load
from recurra.models.over_time import over_time


def refused(built: ModelProto, root: Path) -> str:
    with pytest.raises(ModelRefused) as refusal:
        load(graphs.write(built, root), provider="cpu")
    return str(refusal.value)


def test_a_mean_over_time_is_named(tmp_path: Path):
    message = refused(graphs.mean_over_time(), tmp_path)
    assert "depends on the whole chunk" in message
    assert message.endswith("The first to do so is ReduceMean node 'mean'")


def test_a_convolution_that_looks_ahead_is_named(tmp_path: Path):
    kernel = np.random.default_rng(1).normal(size=(8, 8, 3)).astype(np.float32)
    built = graphs.lstm_with(
        [
            helper.make_node("Transpose", ["mid"], ["channels"], perm=[0, 2, 1]),
            helper.make_node("Conv", ["channels", "kernel"], ["filtered"], pads=[1, 1], name="smooth"),
            helper.make_node("Transpose", ["filtered"], ["y"], perm=[0, 2, 1]),
        ],
        [graphs.const("kernel", kernel, np.float32)],
    )
    assert "The first to do so is Conv node 'smooth'" in refused(built, tmp_path)


def test_attention_over_time_is_named(tmp_path: Path):
    built = graphs.lstm_with(
        [
            helper.make_node("Softmax", ["mid"], ["weights"], axis=1, name="attention"),
            helper.make_node("Mul", ["mid", "weights"], ["y"]),
        ]
    )
    assert "The first to do so is Softmax node 'attention'" in refused(built, tmp_path)


def test_an_unrolled_loop_is_named(tmp_path: Path):
    weights = graphs.Weights.draw("RNN", 3, 8)
    nodes, last = [], "zeros"
    for step in range(3):
        nodes += [
            helper.make_node("Gather", ["x", f"t{step}"], [f"x{step}"], axis=1),
            helper.make_node("MatMul", [f"x{step}", "w"], [f"xw{step}"]),
            helper.make_node("MatMul", [last, "r"], [f"hr{step}"], name=f"step_{step}"),
            helper.make_node("Add", [f"xw{step}", f"hr{step}"], [f"sum{step}"]),
            helper.make_node("Tanh", [f"sum{step}"], [f"h{step}"]),
        ]
        last = f"h{step}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    stored = [graphs.const(f"t{step}", step) for step in range(3)]
    stored += [graphs.const("w", weights.w[0].T, np.float32), graphs.const("r", weights.r[0].T, np.float32)]
    stored.append(graphs.const("zeros", np.zeros((1, 8)), np.float32))
    inputs, outputs = [graphs.info("x", ["batch", 3, 3])], [graphs.info("y", ["batch", 8])]
    message = refused(graphs.model(nodes, inputs, outputs, stored), tmp_path)
    assert "no state found (MatMul node 'step_2' uses the weight 'r' on what MatMul node 'step_0' made of it" in message
    assert "unroll=False" in message


def test_a_loop_that_starts_from_the_data_is_named(tmp_path: Path):
    built, _ = loops.scan(op="RNN", features=8)
    scan = next(node for node in built.graph.node if node.op_type == "Scan")
    scan.name = "decoder"
    scan.input[0] = "summary"
    built.graph.node.insert(0, helper.make_node("ReduceMean", ["x"], ["summary"], axes=[1], keepdims=0))
    message = refused(built, tmp_path)
    assert "no state found (Scan node 'decoder' may hold one, but starts 'h' from the data (x))" in message


def test_beside_another_state_a_loop_that_starts_from_the_data_is_told_with_the_reason(tmp_path: Path):
    built, _ = loops.scan(op="LSTM", features=8)
    scan = next(node for node in built.graph.node if node.op_type == "Scan")
    scan.input[0] = "summary"
    built.graph.node.insert(0, helper.make_node("ReduceMean", ["x"], ["summary"], axes=[1], keepdims=0))
    message = refused(built, tmp_path)
    assert "depends on the whole chunk" in message
    assert "Besides: Scan node 'h_end' may hold one, but starts 'h' from the data (x)" in message


def test_a_state_with_free_sizes_beside_the_batch_is_named(tmp_path: Path):
    step = steps.conv_lstm(fixed=False)
    built = over_time(step, {"h": "h_new", "c": "c_new"})
    graph = built.graph
    del graph.input[1:], graph.output[1:]
    graph.initializer.extend([graphs.const("filters", [3]), graphs.const("ends", [0])])
    graph.node.insert(0, helper.make_node("Shape", ["x"], ["batch_size"], start=0, end=1))
    graph.node.insert(1, helper.make_node("Shape", ["x"], ["image"], start=3))
    graph.node.insert(2, helper.make_node("Concat", ["batch_size", "filters", "image"], ["shape"], axis=0))
    graph.node.insert(3, helper.make_node("ConstantOfShape", ["shape"], ["h"]))
    graph.node.insert(4, helper.make_node("Identity", ["h"], ["c"]))
    message = refused(built, tmp_path)
    assert "Scan node 'time', at 'h'" in message
    assert "free sizes beside it" in message
    assert "all sizes but batch and time fixed" in message


def test_a_counter_that_the_output_reads_is_refused(tmp_path: Path):
    """The number of the timestep starts anew at each call, and is no session's own."""
    built, _ = loops.keras()
    loop = next(node for node in built.graph.node if node.op_type == "Loop")
    body = next(each.g for each in loop.attribute if each.name == "body")
    last = next(node for node in body.node if node.output[0] == "out")
    last.output[0] = "out_before"
    body.node.append(helper.make_node("Cast", ["counter"], ["number"], to=graphs.FLOAT))
    body.node.append(helper.make_node("Add", ["out_before", "number"], ["out"]))
    assert "depends on the whole chunk" in refused(built, tmp_path)
