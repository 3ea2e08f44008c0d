import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def test_the_readmes_example_runs_as_it_stands(start_server):
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    server = start_server(models=ROOT / "models" / "repository")
    assert "127.0.0.1:8500" in example
    lines = example.replace("127.0.0.1:8500", server.address)
    shown: list[object] = []
    exec(compile(lines, "README.md", "exec"), {"print": shown.append})
    assert [getattr(value, "shape", None) for value in shown] == [(2, 1), (1, 1), (2, 1), (2, 1)]


def test_the_example_for_tritons_clients_runs_as_it_stands(start_server):
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/migrate-from-triton.md").read_text(), re.DOTALL)
    server = start_server(models=ROOT / "models" / "repository")
    assert "127.0.0.1:8500" in example
    told: dict[str, Any] = {}
    exec(compile(example.replace("127.0.0.1:8500", server.address), "migrate-from-triton.md", "exec"), told)
    assert [told[name].as_numpy("forecast").shape for name in ("first", "then")] == [(1, 2, 1)] * 2


def test_the_readmes_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", readme)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert len(readme.splitlines()) <= 150
