from pathlib import Path

import graphs
import pytest

from recurra.models import ModelConfig, ModelRefused, load
from recurra.models.config import StateConfig, TensorConfig, parse, read

WHOLE = """
session_ttl = 60
max_batch = 8
durability = "committed"
retry_by_id = true
sha256 = "0000000000000000000000000000000000000000000000000000000000000AbC"

[[states]]
name = "rnn/h"
layer = "rnn"
input = "h"
output = "hn"
batch_axis = 1
fresh = "h0.npy"

[inputs.audio]
batch_axis = 0
time_axis = false
context = 64
chunk_sizes = [512, 256]

[inputs.sr]
constant = 16000

[outputs."out/1"]
batch_axis = 0
time_axis = 1
"""


def test_a_whole_file_is_read():
    assert parse(WHOLE) == ModelConfig(
        states=(StateConfig("rnn/h", "h", "hn", "rnn", 1, "h0.npy"),),
        inputs={
            "audio": TensorConfig(batch_axis=0, time_axis=False, context=64, chunk_sizes=(256, 512)),
            "sr": TensorConfig(constant=16000),
        },
        outputs={"out/1": TensorConfig(batch_axis=0, time_axis=1)},
        session_ttl=60,
        max_batch=8,
        retry_by_id=True,
        sha256="0" * 61 + "abc",
    )


def test_no_file_is_the_default(tmp_path: Path):
    assert read(tmp_path / "model.toml") == parse("") == ModelConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batsh = 2", "has no setting 'max_batsh'; there are durability, inputs, max_batch"),
        ("[inputs.x]\nfoo = 1", r"\[inputs.x\] has no setting 'foo'"),
        ("[outputs.y]\ncontext = 1", r"\[outputs.y\] has no setting 'context'"),
        ("[[states]]\ninput = 'a'\noutput = 'b'", r"states\[0\] has no 'name'"),
        (
            "[[states]]\nname = 'a'\ninput = 'a'\noutput = 'b'\nfresh = true",
            r"states\[0\].fresh = True",
        ),
        ("[states]\nname = 'a'", r"must be tables, written \[\[states\]\]"),
        ("[[inputs]]\nname = 'a'", r"must be tables, written \[inputs.NAME\]"),
        ("max_batch = 0", "max_batch = 0: must be a whole number of at least 1"),
        ("session_ttl = '1h'", "session_ttl = '1h': must be a whole number"),
        ("max_batch = true", "max_batch = True"),
        ("durability = 'maybe'", "durability = 'maybe': must be one of committed, checkpointed, replicated"),
        ("retry_by_id = 1", "retry_by_id = 1: must be true or false"),
        ("sha256 = 'abc'", "sha256 = 'abc': must be 64 hexadecimal digits"),
        ("[inputs.x]\ntime_axis = true", "inputs.x.time_axis = True"),
        ("[inputs.x]\nbatch_axis = -1", "inputs.x.batch_axis = -1"),
        ("[inputs.x]\nchunk_sizes = []", "inputs.x.chunk_sizes"),
        ("[inputs.x]\nchunk_sizes = 512", "inputs.x.chunk_sizes"),
        ("[inputs.x]\nconstant = 'a'", "inputs.x.constant = 'a'"),
        ("max_batch =", "is not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_by_name(text: str, message: str):
    with pytest.raises(ModelRefused, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[inputs.z]\ncontext = 1", r"\[inputs.z\]: the graph has no such one; it has x"),
        ("[outputs.z]\nbatch_axis = 0", r"\[outputs.z\]: the graph has no such one; it has y"),
        ("[inputs.x]\nbatch_axis = 3", r"\[inputs.x\] batch_axis = 3, but it has 3 axes"),
        ("[inputs.x]\nbatch_axis = 1\ntime_axis = 1", "cannot be the same axis"),
        ("[outputs.y]\ntime_axis = 5", r"\[outputs.y\] time_axis = 5, but it has 3 axes"),
    ],
)
def test_what_does_not_fit_the_graph_is_refused(tmp_path: Path, toml: str, message: str):
    with pytest.raises(ModelRefused, match=message):
        load(graphs.write(graphs.lstm(), tmp_path, toml=toml), provider="cpu")
