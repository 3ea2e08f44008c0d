import os
import subprocess
import sys
from pathlib import Path

import graphs
import numpy as np
import pytest

from recurra.models import load
from recurra.models.session import Session

MIB = 1 << 20


def resident() -> int:
    """Bytes of this process in memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def test_the_memory_of_an_outlier_is_given_back_by_the_next_usual_run():
    session = Session(graphs.lstm(hidden=64).SerializeToString(), "cpu")
    usual, outlier = np.ones((4, 1, 3), np.float32), np.ones((64, 4000, 3), np.float32)
    session.run(["y"], {"x": usual})
    before = resident()
    session.run(["y"], {"x": outlier})
    held = resident() - before
    assert held > 64 * MIB
    session.run(["y"], {"x": usual})
    assert resident() - before < held / 4


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_uses_as_many_threads_as_it_is_told(tmp_path: Path, threads: int):
    model = load(graphs.write(graphs.lstm(), tmp_path), provider="cpu", threads=threads)
    assert model.program.session.threads == threads
    assert model.program.session._session.get_session_options().intra_op_num_threads == threads


def test_the_runtime_keeps_no_id_of_the_machine_and_calls_nobody(tmp_path: Path):
    """What it is to send is kept in the home folder first, with the id that it is sent under."""
    mine = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environ = {name: value for name, value in os.environ.items() if name not in mine}
    environ |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    script = "import recurra.models.session as s, graphs; s.Session(graphs.lstm().SerializeToString(), 'cpu')"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent, env=environ, timeout=120)
    assert [path.name for path in tmp_path.rglob("*")] == []
