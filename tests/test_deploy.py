"""The image and the Compose files, as far as they can be checked without Docker."""

import csv
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from recurra.server.settings import Settings
from tests.service.processes import ServerProcess

PROJECT = Path(__file__).parent.parent
DOCKERFILE = (PROJECT / "server" / "Dockerfile").read_text()


def read(name: str) -> str:
    return (PROJECT / name).read_text()


@pytest.mark.parametrize(("file", "provider"), [("docker-compose.yml", "auto"), ("deploy/compose.gpu.yml", "cuda")])
def test_the_command_in_a_compose_file_is_of_valid_settings(file: str, provider: str, tmp_path: Path):
    [inner] = re.findall(r"command: \[(serve,.*)\]", read(file))
    [words] = csv.reader([inner], skipinitialspace=True)
    set_by_image = dict(re.findall(r"(RECURRA_\w+)=(\S+)", DOCKERFILE))
    assert set_by_image.keys() == {"RECURRA_MODELS", "RECURRA_LISTEN", "RECURRA_DATA"}
    settings = Settings.parse(words[1:], set_by_image | {"RECURRA_MODELS": str(tmp_path)})
    assert (settings.store, settings.provider) == ("redis://store:6379/0", provider)


def test_the_image_is_of_extras_that_there_are():
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    asked = re.findall(r"ARG EXTRA=(\S+)", DOCKERFILE) + re.findall(r"EXTRA: (\S+)", read("deploy/compose.gpu.yml"))
    assert asked == ["server", "server-gpu"]
    assert set(asked) <= extras.keys()


def test_what_the_image_copies_is_sent_to_its_build():
    admitted = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    copied = [words.split()[:-1] for words in re.findall(r"^COPY ([^-.].*)$", DOCKERFILE, re.MULTILINE)]
    assert len(copied) == 2
    for name in {name for names in copied for name in names}:
        assert (PROJECT / name).is_file()
        assert name in admitted


@pytest.mark.skipif(sys.platform != "linux", reason="there is no CUDA for it")
def test_the_images_cuda_is_of_exact_versions_that_the_runtime_takes():
    pinned = dict(line.split("==") for line in read("deploy/constraints.gpu.txt").splitlines() if line[0] != "#")
    wanted = [Requirement(text) for text in requires("onnxruntime-gpu") or ()]
    cuda = [
        each for each in wanted if each.marker and any(each.marker.evaluate({"extra": x}) for x in ("cuda", "cudnn"))
    ]
    assert cuda
    for each in cuda:
        assert each.specifier.contains(pinned[each.name])


def test_the_health_check_tells_a_server_that_serves_from_none(server: ServerProcess):
    def check(address: str) -> subprocess.CompletedProcess[str]:
        script = PROJECT / "deploy" / "health.py"
        environ = os.environ | {"RECURRA_LISTEN": address}
        return subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True, check=False)

    serving, silent = check(server.address), check("127.0.0.1:1")
    assert (serving.returncode, serving.stderr) == (0, "")
    assert silent.returncode == 1
    assert silent.stderr.startswith("not serving: ")
