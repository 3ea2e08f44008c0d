import json
import signal
import subprocess
import sys
from pathlib import Path

import graphs
import pytest

from recurra.models import ModelRefused, quarantine

OLDER = {"linear_before_reset": 0}


def test_a_good_model_is_cleared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, cache = graphs.write(graphs.lstm(), tmp_path), tmp_path / "cache"
    quarantine.clear(folder, cache=cache)
    (verdict,) = cache.iterdir()
    assert json.loads(verdict.read_text()) == {"refused": ""}
    monkeypatch.setattr(quarantine, "_try", lambda *_: pytest.fail("tried again"))
    quarantine.clear(folder, cache=cache)


def test_a_refusal_is_the_childs_own_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, cache = graphs.write(graphs.mean_over_time(), tmp_path), tmp_path / "cache"
    for _ in range(2):
        with pytest.raises(ModelRefused, match="depends on the whole chunk"):
            quarantine.clear(folder, cache=cache)
        monkeypatch.setattr(quarantine, "_try", lambda *_: pytest.fail("tried again"))


def test_another_file_or_configuration_is_tried_anew(tmp_path: Path):
    folder = graphs.write(graphs.lstm(), tmp_path)
    digests = {quarantine.digest(folder)}
    (folder / "model.toml").write_text("max_batch = 3\n")
    digests.add(quarantine.digest(folder))
    (folder / "1" / "weights.bin").write_bytes(b"\0")
    digests.add(quarantine.digest(folder))
    assert len(digests) == 3
    assert quarantine.digest(folder) in digests


def test_a_version_that_is_a_link_to_a_folder_is_tried_anew_when_what_is_there_changes(tmp_path: Path):
    folder, there = graphs.write(graphs.lstm(), tmp_path), tmp_path / "there"
    (folder / "1").rename(there)
    (folder / "1").symlink_to(there)
    before = quarantine.digest(folder)
    (there / "model.onnx").write_bytes(b"another")
    assert quarantine.digest(folder) != before


def test_a_file_beside_the_model_that_cannot_be_read_is_in_nobodys_way(tmp_path: Path):
    folder, cache = graphs.write(graphs.lstm(), tmp_path), tmp_path / "cache"
    (folder / "notes").symlink_to("/proc/self/mem")
    quarantine.clear(folder, cache=cache)
    assert not cache.exists()


def test_where_no_process_can_be_started_the_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quarantine.sys, "executable", str(tmp_path / "nowhere"))
    with pytest.raises(ModelRefused, match="no process can be started"):
        quarantine.clear(graphs.write(graphs.lstm(), tmp_path))


def test_lower_limits_than_the_trials_own_stay(tmp_path: Path):
    folder = graphs.write(graphs.lstm(), tmp_path)
    command = [sys.executable, "-m", quarantine.__name__, str(folder), "cpu", "60", str(2**40)]
    script = 'ulimit -v 16000000; exec "$@"'
    child = subprocess.run(["/bin/sh", "-c", script, "sh", *command], capture_output=True, text=True, check=True)
    assert json.loads(child.stdout) == {"refused": ""}


def test_a_file_that_ends_its_process_is_refused(tmp_path: Path):
    """No verdict is kept: the machine may have been short of memory."""
    folder, cache = graphs.write(graphs.lstm(), tmp_path), tmp_path / "cache"
    with pytest.raises(ModelRefused, match=r"'model' ends the process that loads it \(signal SIGSEGV\)"):
        quarantine.clear(folder, cache=cache, begun=lambda child: child.send_signal(signal.SIGSEGV))
    assert not cache.exists()


def test_a_file_that_needs_more_memory_than_it_may_have_is_refused(tmp_path: Path):
    """No verdict is kept: the machine may have been short of memory."""
    folder, cache = graphs.write(graphs.lstm(), tmp_path), tmp_path / "cache"
    with pytest.raises(ModelRefused, match=r"bad_alloc|bytes of memory|ends the process"):
        quarantine.clear(folder, cache=cache, max_bytes=32 * 2**20)
    assert not cache.exists()


def test_a_file_that_takes_too_long_is_refused(tmp_path: Path):
    folder = graphs.write(graphs.lstm(), tmp_path)
    with pytest.raises(ModelRefused, match=r"took more than 0\.01 s to load"):
        quarantine.clear(folder, timeout_seconds=0.01)


def test_a_verdict_that_cannot_be_read_is_made_anew(tmp_path: Path):
    folder, cache = graphs.write(graphs.lstm(), tmp_path), tmp_path / "cache"
    cache.mkdir()
    (cache / f"{quarantine.digest(folder)}-cpu-{2**34}.json").write_text("{")
    quarantine.clear(folder, cache=cache)
    assert json.loads(next(cache.iterdir()).read_text()) == {"refused": ""}


def test_the_form_of_the_provider_that_will_run_it_is_tried(tmp_path: Path):
    """A GRU of Keras' older form becomes a Scan on CUDA, which runs on the CPU too."""
    folder, cache = graphs.write(graphs.native("GRU", attributes=OLDER)[0], tmp_path), tmp_path / "cache"
    for made_for in ("cpu", "cuda"):
        quarantine.clear(folder, made_for=made_for, cache=cache)
    assert len(list(cache.iterdir())) == 2
