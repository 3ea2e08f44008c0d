"""What a process of its own finds of the providers, and what is told where it does not come to say so."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from recurra.models import choose, elsewhere, provider
from recurra.models.provider import NoGpu


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    elsewhere._failure.cache_clear()
    yield
    elsewhere._failure.cache_clear()


def ending(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """In place of Python a shell script is run."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(elsewhere.sys, "executable", str(program))


def test_it_finds_what_this_process_would_find_and_runs_nothing_in_this_one(monkeypatch: pytest.MonkeyPatch):
    here = choose("auto")
    monkeypatch.setattr(provider, "failure", lambda _: pytest.fail("a node was run in this process"))
    assert elsewhere.choose("auto") == here
    assert elsewhere.choose("cpu") == choose("cpu")


def test_a_provider_is_asked_for_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    ending(monkeypatch, tmp_path, f"""echo >>{tmp_path}/asked; echo '{{"failure": ""}}'""")
    assert [elsewhere.choose("auto").provider for _ in range(2)] == ["cuda", "cuda"]
    assert (tmp_path / "asked").read_text() == "\n"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo oh dear >&2; exit 3", "ends the process that tries it (status 3, oh dear)"),
        ("kill -SEGV $$", "ends the process that tries it (signal SIGSEGV)"),
        ("echo '[]'", "ends the process that tries it (status 0, )"),
    ],
)
def test_a_process_that_ends_or_says_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, told: str
):
    ending(monkeypatch, tmp_path, script)
    assert elsewhere.choose("auto") == ("cpu", f"no GPU can be used: CUDAExecutionProvider {told}")
    with pytest.raises(NoGpu, match="CUDAExecutionProvider "):
        elsewhere.choose("cuda")


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    ending(monkeypatch, tmp_path, "exec sleep 60")
    monkeypatch.setattr(elsewhere, "_SECONDS", 0.2)
    assert elsewhere.choose("auto").reason.endswith("CUDAExecutionProvider did not run a node within 0.2 s")


def test_where_no_process_can_be_started_that_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(elsewhere.sys, "executable", str(tmp_path / "nowhere"))
    assert "no process can be started" in elsewhere.choose("auto").reason
