"""The API's files: their words, their names, and the stubs that were made from them."""

import importlib.resources
import re
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from recurra.wire.errors import BY_REASON

PROTO = Path(__file__).parent.parent / "proto"
FILES = sorted((PROTO / "recurra/v1").glob("*.proto"))
STUBS = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
_SERVICE, _METHOD = 6, 2  # numbers of the fields that a source location's path goes through


def compile_(*options: str) -> None:
    """What `make proto` runs."""
    packages = Path(importlib.resources.files("google.rpc")._paths[0]).parent.parent
    assert (packages / "google/rpc/status.proto").exists()
    wanted = [str(path) for path in FILES]
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    assert protoc.main(["protoc", f"-I{PROTO}", f"-I{packages}", f"-I{well_known}", *options, *wanted]) == 0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    """The API's files, with their comments."""
    image = tmp_path_factory.mktemp("image") / "image.binpb"
    compile_("--include_source_info", f"--descriptor_set_out={image}")
    return list(descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes()).file)


@pytest.fixture(scope="module")
def comments(files) -> dict[str, str]:
    """Each rpc's comment, as one line."""
    found = {}
    for file in files:
        words = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for at, service in enumerate(file.service):
            for number, method in enumerate(service.method):
                text = words.get((_SERVICE, at, _METHOD, number), "")
                found[f"{service.name}.{method.name}"] = " ".join(text.split())
    return found


def enums(message):
    yield from message.enum_type
    for nested in getattr(message, "nested_type", getattr(message, "message_type", [])):
        yield from enums(nested)


def messages(file):
    waiting = list(file.message_type)
    while waiting:
        message = waiting.pop()
        waiting += message.nested_type
        yield message


def test_the_services_are_the_ones_that_the_design_names(files):
    assert {service.name: [method.name for method in service.method] for file in files for service in file.service} == {
        "InferenceService": ["Predict", "StreamPredict"],
        "SessionService": [
            "GetSession",
            "ListSessions",
            "ResetState",
            "GetState",
            "SetState",
            "ForkSession",
            "EndSession",
        ],
        "ModelService": ["ListModels", "GetModel"],
    }


def test_each_rpc_says_what_it_does_and_how_it_fails(comments):
    codes = {code.name for code in grpc.StatusCode}
    methods = {rpc.partition(".")[2] for rpc in comments}
    for rpc, comment in comments.items():
        assert len(comment) > 40, rpc
        named = codes & set(re.findall(r"\b[A-Z_]{6,}\b", comment))
        others = set(re.findall(r"(?i)status codes as (\w+)", comment))
        assert named | others, f"{rpc} names no status code"
        assert others <= methods, rpc


def test_every_reason_that_a_comment_names_exists(comments):
    known = {code.name for code in grpc.StatusCode} | set(BY_REASON)
    others = {"CREATE_NEW", "CREATE_NEVER", "CREATE_IF_MISSING"}
    for rpc, comment in comments.items():
        named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", comment))
        assert named <= known | others, rpc


def test_an_enums_zero_is_unspecified(files):
    found = [enum for file in files for enum in enums(file)]
    assert found
    for enum in found:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
        assert (enum.value[0].name, enum.value[0].number) == (f"{prefix}_UNSPECIFIED", 0)
        assert all(value.name.startswith(f"{prefix}_") for value in enum.value)


def test_each_rpc_has_messages_of_its_own(files):
    used = []
    for file in files:
        for service in file.service:
            for method in service.method:
                assert method.input_type == f".recurra.v1.{method.name}Request"
                assert method.output_type == f".recurra.v1.{method.name}Response"
                used += [method.input_type, method.output_type]
    assert len(set(used)) == len(used)


def test_times_and_ttls_are_named_and_typed_as_such(files):
    for file in files:
        for message in messages(file):
            for field in message.field:
                timestamp, duration = (field.type_name == f".google.protobuf.{n}" for n in ("Timestamp", "Duration"))
                assert timestamp == field.name.endswith("_time"), f"{message.name}.{field.name}"
                assert not duration or field.name.endswith("ttl"), f"{message.name}.{field.name}"


def test_the_package_is_the_folder(files):
    assert [file.package for file in files] == ["recurra.v1"] * len(FILES)
    assert sorted(file.name for file in files) == [path.relative_to(PROTO).as_posix() for path in FILES]


def test_the_stubs_are_what_the_files_say(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")  # where protoc finds its plugins
    outs = ("python", "grpc_python", "mypy", "mypy_grpc")
    compile_(*(f"--{out}_out={'quiet:' if out.startswith('mypy') else ''}{tmp_path}" for out in outs))
    made = {path.name: path.read_text() for path in (tmp_path / "recurra/v1").iterdir()}
    kept = {path.name: path.read_text() for path in (PROTO / "recurra/v1").glob("*_pb2*.py*")}
    assert sorted(made) == sorted(path.stem + suffix for path in FILES for suffix in STUBS)
    assert [name for name in sorted(made.keys() | kept.keys()) if made.get(name) != kept.get(name)] == [], "make proto"
