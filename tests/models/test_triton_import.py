"""`recurra import triton`: a config.pbtxt becomes a model.toml, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recurra.models import load
from recurra.models.imports import import_
from tests.models import graphs

WHOLE = """
name: "m"
backend: "onnxruntime"
max_batch_size: 8
version_policy: { all { } }
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [
  { name: "y" data_type: TYPE_FP32 dims: [ 2 ] },
  { name: "h_out" data_type: TYPE_FP32 dims: [ 2 ] }
]
instance_group [ { count: 2 kind: KIND_CPU } ]
something_of_the_future: { deep: [ 1, 2 ] deeper { kind: OF_NO_KIND } }
sequence_batching {
  max_sequence_idle_microseconds: 2500000
  oldest { max_candidate_sequences: 4 }
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 1, 0 ] } ] },
    { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ 0, 1 ] } ] },
    { name: "END" control [ { kind: CONTROL_SEQUENCE_END fp32_false_true: [ 0, 1 ] } ] },
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 } ] }
  ]
  state [
    {
      input_name: "h_in" output_name: "h_out" data_type: TYPE_FP32 dims: [ 2 ]
      initial_state: { name: "first" data_type: TYPE_FP32 dims: [ 2 ] data_file: "first.bin" }
    }
  ]
}
"""


def folder(tmp_path: Path, config: str = WHOLE) -> Path:
    made = graphs.write(graphs.controlled(turned=True), tmp_path, "m")
    (made / "config.pbtxt").write_text(config)
    (made / "initial_state").mkdir()
    (made / "initial_state/first.bin").write_bytes(np.array([1.5, -2.0], "<f4").tobytes())
    return made


def test_a_whole_configuration_is_converted_and_proven(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = folder(tmp_path)
    assert import_(["triton", str(made)]) == 0
    model = load(made, provider="cpu")
    assert (model.config.session_ttl, model.config.max_batch) == (3, 8)
    assert [spec.name for spec in model.signature.inputs] == ["x", "END", "CORRID"]
    fresh = {state.name: state.fresh.tolist() for state in model.signature.states}
    assert fresh == {"h_in": [1.5, -2.0], "START": [0.0]}
    assert model.config.inputs["READY"].constant == 1
    x = np.random.default_rng(0).standard_normal((1, 5, 2)).astype(np.float32)
    told = [np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int64)]
    [y], _ = model.program.run([x, *told], [state.fresh[None] for state in model.signature.states])
    np.testing.assert_allclose(y[0], graphs.controlled_run(x[0]), rtol=1e-6)
    said = capsys.readouterr().out
    assert "version 1, states h_in, START" in said
    for note in (
        "the highest version alone",
        "h_out: no output any more",
        "the server decides that: instance_group",
    ):
        assert note in said


def test_what_is_zero_in_triton_is_zero_here_and_a_day_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    built, _ = graphs.one_step_cell()
    made = graphs.write(built, tmp_path, "m")
    (made / "config.pbtxt").write_text(
        'platform: "onnxruntime_onnx" max_batch_size: 4 sequence_batching { direct { } state [ { input_name: "h_in" '
        'output_name: "h_out" data_type: TYPE_FP32 dims: [ 8 ] initial_state: { name: "zero" data_type: TYPE_FP32 '
        "dims: [ 8 ] zero_data: true } } ] }"
    )
    assert import_(["triton", str(made)]) == 0
    model = load(made, provider="cpu")
    assert not model.signature.states[0].fresh.any()
    assert model.config.session_ttl == 86_400
    assert "kept for a day" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("max_batch_size: 8", "max_batch_size: eight"), "config.pbtxt cannot be read"),
        (('backend: "onnxruntime"', 'backend: "python"'), "'python' models are not served here"),
        (('backend: "onnxruntime"', 'default_model_filename: "net.onnx"'), "call it model.onnx"),
        (('backend: "onnxruntime"', "model_transaction_policy { decoupled: true }"), "more or less than once"),
        (("data_type: TYPE_INT64 }", "data_type: TYPE_STRING }"), "'CORRID' is a text"),
        (("CONTROL_SEQUENCE_END fp32_false_true: [ 0, 1 ]", "CONTROL_SEQUENCE_END"), "'END' has 0 values"),
        (('data_file: "first.bin"', 'data_file: "none.bin"'), "initial_state/none.bin"),
        (("TYPE_FP32 dims: [ 2 ] data_file", "TYPE_FP32 dims: [ 3 ] data_file"), "does not hold TYPE_FP32 of [3]"),
        (('output_name: "h_out"', 'output_name: "h"'), "no free output 'h'"),
    ],
)
def test_what_cannot_be_served_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], words: str
):
    assert change[0] in WHOLE
    made = folder(tmp_path, WHOLE.replace(*change))
    before = sorted(path.name for path in made.iterdir())
    assert import_(["triton", str(made)]) == 1
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in made.iterdir()) == before


def test_a_model_toml_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = folder(tmp_path)
    (made / "model.toml").write_text("max_batch = 2\n")
    assert import_(["triton", str(made)]) == 1
    assert "exists" in capsys.readouterr().err
    assert (made / "model.toml").read_text() == "max_batch = 2\n"


def test_a_version_that_is_not_the_highest_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = folder(tmp_path, WHOLE.replace("all { }", "specific { versions: [ 1 ] }"))
    graphs.write(graphs.controlled(turned=True), tmp_path, "m", "2")
    assert import_(["triton", str(made)]) == 0
    assert "version 2, the highest, is served, not 1" in capsys.readouterr().out
