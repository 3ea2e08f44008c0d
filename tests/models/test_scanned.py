from pathlib import Path
from typing import Any

import graphs
import numpy as np
import onnx
import pytest
from graphs import GATES, const, info
from onnx import ModelProto, TensorProto, helper, numpy_helper

from recurra.models import ModelConfig, scanned
from recurra.models.prepare import prepare
from recurra.models.session import Session

RANDOM = np.random.default_rng(21)

CASES: list[tuple[str, dict[str, Any], bool]] = [
    ("GRU", {"linear_before_reset": 0}, True),
    ("GRU", {"linear_before_reset": 1}, False),
    ("GRU", {"linear_before_reset": 1, "clip": 0.5}, True),
    ("GRU", {"linear_before_reset": 0, "activations": ["HardSigmoid", "Relu"]}, True),
    ("GRU", {"linear_before_reset": 1, "activations": ["Sigmoid", "Softsign"]}, True),
    ("RNN", {}, False),
    ("RNN", {"activations": ["Relu"]}, True),
    ("RNN", {"activations": ["Tanh"]}, False),
    ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1]}, True),
    ("RNN", {"activations": ["ScaledTanh"], "activation_alpha": [0.5], "activation_beta": [0.7]}, True),
    ("RNN", {"activations": ["ThresholdedRelu"], "activation_alpha": [0.2]}, True),
    ("LSTM", {}, False),
    ("LSTM", {"clip": 0.4}, True),
    ("LSTM", {"input_forget": 1}, True),
    ("LSTM", {"peepholes": True}, True),
    ("LSTM", {"activations": ["HardSigmoid", "Elu", "Softplus"], "activation_alpha": [0.3, 0.6]}, True),
    ("LSTM", {"activations": ["Sigmoid", "LeakyRelu", "Tanh"], "activation_alpha": [0.3]}, True),
]


def built(op: str, settings: dict[str, Any], direction: str, lengths: bool) -> ModelProto:  # noqa: FBT001
    """One node alone: x (T, N, 3), h and c (D, N, 5), lens (N) to y, h_new, c_new."""
    settings = dict(settings)
    peepholes = settings.pop("peepholes", False)
    count = 2 if direction == "bidirectional" else 1
    if "activations" in settings:
        settings["activations"] = settings["activations"] * count
        for key in ("activation_alpha", "activation_beta"):
            if key in settings:
                settings[key] = settings[key] * count
    weights = graphs.Weights.draw(op, 3, 5, count)
    stored = weights.initializers("l")
    names = ["x", "l_w", "l_r", "l_b", "lens" if lengths else "", "h", *(["c"] if op == "LSTM" else [])]
    if peepholes:
        names.append("p")
        stored.append(const("p", RANDOM.normal(size=(count, 15)), np.float32))
    states = ["h", "c"][: len(names) - 5 - peepholes]
    node = helper.make_node(
        op, names, ["y", *(f"{each}_new" for each in states)], hidden_size=5, direction=direction, **settings
    )
    inputs = [info("x", ["t", "n", 3]), *(info(each, [count, "n", 5]) for each in states)]
    if lengths:
        inputs.append(info("lens", ["n"], TensorProto.INT32))
    outputs = [info("y", ["t", count, "n", 5]), *(info(f"{each}_new", [count, "n", 5]) for each in states)]
    return graphs.model([node], inputs, outputs, stored)


def inputs_of(model: ModelProto, timesteps: int = 6, rows: int = 4) -> dict[str, graphs.Array]:
    feed = {}
    for value in model.graph.input:
        sizes = {"t": timesteps, "n": rows}
        dims = [dim.dim_value or sizes[dim.dim_param] for dim in value.type.tensor_type.shape.dim]
        feed[value.name] = RANDOM.normal(size=dims).astype(np.float32)
    if "lens" in feed:
        feed["lens"] = np.array([6, 1, 3, 5], np.int32)
    return feed


@pytest.mark.parametrize(("op", "settings", "needed"), CASES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [False, True])
def test_a_scan_gives_what_the_native_node_gives(  # noqa: PLR0917
    op: str,
    settings: dict[str, Any],
    needed: bool,  # noqa: FBT001
    direction: str,
    lengths: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
):
    model = built(op, settings, direction, lengths)
    assert scanned.needs(model.graph.node[0]) == needed
    monkeypatch.setattr(scanned, "needs", lambda node: node.op_type in GATES)
    feed = inputs_of(model)
    expected = graphs.run(model, feed)
    assert scanned.rewrite(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert not any(node.op_type in GATES for node in model.graph.node)
    for ours, theirs in zip(graphs.run(model, feed), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_node_without_bias_and_states_starts_from_zeros():
    model = built("GRU", {"linear_before_reset": 0}, "bidirectional", lengths=False)
    node = model.graph.node[0]
    del node.input[3:]
    del model.graph.input[1:]
    feed = inputs_of(model)
    expected = graphs.run(model, feed)
    assert scanned.rewrite(model) == 1
    for ours, theirs in zip(graphs.run(model, feed), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_two_layers_and_one_in_a_branch_are_all_rewritten():
    model, _ = graphs.branching_gru(exposed=False, flag=None)
    for node in model.graph.node:
        for branch in scanned.subgraphs(node):
            branch.node[0].attribute.remove(
                next(each for each in branch.node[0].attribute if each.name == "linear_before_reset")
            )
    x = RANDOM.normal(size=(2, 5, 3)).astype(np.float32)
    expected = graphs.run(model, {"x": x})
    assert scanned.rewrite(model) == 2
    np.testing.assert_allclose(graphs.run(model, {"x": x}), expected, atol=1e-6)


def test_double_precision_stays_double():
    model = built("GRU", {"linear_before_reset": 0}, "forward", lengths=False)
    doubled = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float64)
        doubled[tensor.name] = array
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    single = {name: array.astype(np.float32) for name, array in inputs_of(model).items()}
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    assert scanned.rewrite(model) == 1
    y, _ = graphs.run(model, {name: array.astype(np.float64) for name, array in single.items()})
    reference = built("GRU", {"linear_before_reset": 0}, "forward", lengths=False)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, graphs.run(reference, single)[0], atol=1e-6)


@pytest.mark.parametrize("opset", [13, 18, 22])
def test_the_scan_is_of_the_files_opset(opset: int):
    model = built("GRU", {"linear_before_reset": 0}, "bidirectional", lengths=True)
    model.opset_import[0].version, model.ir_version = opset, 10
    feed = inputs_of(model)
    expected = graphs.run(model, feed)
    assert scanned.rewrite(model) == 1
    onnx.checker.check_model(model, full_check=True)
    for ours, theirs in zip(graphs.run(model, feed), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_an_old_opset_is_left_as_it_is():
    model = built("GRU", {"linear_before_reset": 0}, "forward", lengths=False)
    model.opset_import[0].version = 12
    assert scanned.rewrite(model) == 0


def test_the_form_is_chosen_by_the_provider_and_keeps_the_states():
    """A session's state fits replicas with and without a GPU."""
    forms = []
    for gpu in (False, True):
        model, _ = graphs.native("GRU", attributes={"clip": 0.5})
        prepared = prepare(model, ModelConfig(), Path(), gpu=gpu)
        ops = [node.op_type for node in onnx.load_model_from_string(prepared.content).graph.node]
        assert ("Scan" in ops, "GRU" in ops) == (gpu, not gpu)
        forms.append((prepared.pairs, prepared.content))
    assert forms[0][0] == forms[1][0]
    x = RANDOM.normal(size=(2, 5, 3)).astype(np.float32)
    h = RANDOM.normal(size=(1, 2, 8)).astype(np.float32)
    cpu, gpu = (Session(content, "cpu").run(None, {"x": x, "gru_1/h": h}) for _, content in forms)
    for ours, theirs in zip(gpu, cpu, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
