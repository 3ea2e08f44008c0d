"""The commands that measure and compare on a GPU, from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.parity.pooled import CASES


def test_the_bench_ends_with_its_table_which_says_that_no_gpu_was_measured(tmp_path: Path):
    command = [sys.executable, "-m", "bench.gpu", "--quick", "--provider", "cuda"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "no GPU was measured" in done.stdout
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert "rehearsal" in found["machine"]
    kinds = {row["kind"] for row in found["found"]}
    assert {"raw", "pool, no service, CUDA graphs", "frames, checkpointed", "frames, committed, CUDA graphs"} <= kinds
    assert [row["remark"] for row in found["found"] if not row["rate"] > 0] == []
    assert done.stderr == ""


def test_the_comparison_with_the_cpu_ends_with_its_sum(tmp_path: Path):
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "keras_lstm").symlink_to(CASES / "keras_lstm")
    command = [sys.executable, "-m", "tests.parity.pooled", "--provider", "cuda", "cases"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "14 comparisons on cuda, 0 differ" in done.stdout
    modes = [line.split()[-4] for line in done.stdout.splitlines() if " 1000 " in line]
    assert modes == ["fp32", "tf32", "fp16"] * 4
