"""One distribution over four roots: what must hold so that none of them hides another."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
ROOTS = ("proto", "client", "server", "models")
ROOMS = ("v1", "inference", "wire", "client", "command", "models", "server")
MAX_FILE_BYTES = 1 << 20


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    return [PROJECT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = pytest.importorskip("hatchling.builders.wheel")
    [built] = build.WheelBuilder(str(PROJECT)).build(directory=str(folder), versions=["standard"])
    return zipfile.ZipFile(built).namelist()


@pytest.mark.parametrize("root", ROOTS)
def test_a_root_is_a_namespace(root):
    assert (PROJECT / root / "recurra").is_dir()
    assert not (PROJECT / root / "__init__.py").exists()
    assert not (PROJECT / root / "recurra" / "__init__.py").exists()  # it would hide the other three
    assert not [path for path in (PROJECT / root / "recurra").iterdir() if path.is_file()]


def test_all_rooms_can_be_imported_side_by_side():
    from_all = "; ".join(f"import recurra.{room}" for room in ROOMS)
    subprocess.run([sys.executable, "-W", "error", "-c", from_all], check=True, cwd="/")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_tells_type_checkers_that_it_is_typed(wheel, room):
    assert f"recurra/{room}/py.typed" in wheel
    assert f"recurra/{room}/__init__.py" in wheel


def test_the_wheel_holds_every_module_and_no_more(wheel):
    in_tree = {
        path.relative_to(PROJECT / root).as_posix()
        for root in ROOTS
        for path in (PROJECT / root / "recurra").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel if not name.startswith("recurra-")}
    assert packed == in_tree
    assert {
        "recurra/v1/inference_pb2.py",
        "recurra/v1/inference_pb2.pyi",
        "recurra/v1/inference_pb2_grpc.pyi",
    } <= packed
    assert "recurra/__init__.py" not in packed
    assert not [name for name in packed if name.endswith(".onnx")]


def test_the_wheel_brings_the_command_line(wheel):
    [entry_points] = [name for name in wheel if name.endswith("/entry_points.txt")]
    assert entry_points


def test_the_source_distribution_holds_the_whole_project(tmp_path):
    build = pytest.importorskip("hatchling.builders.sdist")
    [built] = build.SdistBuilder(str(PROJECT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for root in ROOTS:
        assert any(name.startswith(f"{root}/recurra/") for name in names)
    assert {"pyproject.toml", "README.md", "LICENSE", "models/repository/forecaster/1/model.onnx"} <= names


def test_no_tracked_file_is_larger_than_a_megabyte():
    sizes = {path: path.stat().st_size for path in tracked() if path.is_file()}
    assert {str(path): size for path, size in sizes.items() if size > MAX_FILE_BYTES} == {}


def test_the_command_tells_grpcs_core_to_be_silent_before_it_is_loaded():
    script = "import os, sys, recurra.command as c; assert 'grpc' not in sys.modules; sys.argv[1:] = ['nothing']\n"
    script += "try: c.main()\nexcept SystemExit: print(os.environ['GRPC_VERBOSITY'], 'grpc' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["NONE", "True"]
