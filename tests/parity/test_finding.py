from dataclasses import replace
from pathlib import Path

import pytest

from tests.models import graphs
from tests.parity.case import Case, Oracle
from tests.parity.finding import Finding, chosen, form, summary, write_table

CASE = Case("a_case", "a layer", "torch", lambda folder: Oracle({}, {}))
GOOD = Finding(CASE, "LSTM", 3e-8, (7, None), streamable=True)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    page = tmp_path / "models.md"
    page.write_text("Before.\n\n<!-- begin: written by make parity -->\nold\n<!-- end -->\n\nAfter.\n")
    return page


def test_the_table_replaces_the_one_before_and_nothing_else(page):
    write_table(page, [GOOD, replace(GOOD, ragged=True, nodes=(2, 5))])
    once = page.read_text()
    assert "| a layer | torch | LSTM | 3e-08 | 7 / - | yes | no |  |" in once
    assert "| 2 / 5 | yes | yes |" in once
    assert once.startswith("Before.\n\n<!--")
    assert once.endswith("<!-- end -->\n\nAfter.\n")
    assert "old" not in once
    assert "Not measured on a GPU" not in once
    write_table(page, [GOOD, replace(GOOD, ragged=True, nodes=(2, 5))])
    assert page.read_text() == once


def test_the_table_says_what_failed_and_what_was_not_measured(page):
    write_table(page, [replace(GOOD, error=2e-5), Finding(CASE, failure="ModelRefused: no\nstate")])
    text = page.read_text()
    assert "2e-05 **(too large)**" in text
    assert "| **failed**: ModelRefused: no state |" in text
    assert "Not measured on a GPU." in text


def test_all_must_be_within_their_tolerance_and_nine_of_ten_within_a_millionth():
    near = replace(GOOD, error=5e-6)
    assert summary([*[GOOD] * 9, near])[1]
    assert not summary([*[GOOD] * 8, near])[1]
    assert not summary([*[GOOD] * 99, replace(GOOD, error=2e-5)])[1]
    assert not summary([*[GOOD] * 99, Finding(CASE, failure="refused")])[1]
    assert (
        "10 of 10 cases within their tolerance, 9 within 1e-06; largest error 5.0e-06"
        in summary([*[GOOD] * 9, near])[0]
    )


def test_a_case_that_differs_by_design_is_told_but_not_counted():
    apart = replace(GOOD, case=replace(CASE, differs="for a reason"), error=0.2)
    said, met = summary([*[GOOD] * 9, apart])
    assert (said.split(";")[-1], met) == (" 1 may differ by design", True)
    assert apart.row[3:] == ("2e-01", "7 / -", "yes", "no", "for a reason")
    assert not summary([*[GOOD] * 9, replace(apart, error=float("inf"))])[1]
    assert not summary([*[GOOD] * 9, Finding(apart.case, failure="refused")])[1]


def test_one_of_each_form_is_committed_before_a_second_and_no_more_than_fits(tmp_path: Path):
    findings = []
    for name, kind, size in [("a", "LSTM", 10), ("b", "LSTM", 20), ("c", "Loop", 70), ("d", "LSTM", 30)]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(bytes(size))
        findings.append(replace(GOOD, case=replace(CASE, name=name), form=kind))
    findings.append(replace(findings[0], case=replace(CASE, name="e"), error=1e-4))
    assert [path.name for path in chosen(findings, tmp_path, 105)] == ["a", "c", "b"]


def test_a_form_is_told_by_the_nodes_that_keep_a_state(tmp_path: Path):
    forms = {
        "2 LSTM": graphs.lstm(layers=2),
        "GRU": graphs.embedding_gru()[0],
        "one timestep": graphs.one_step_cell()[0],
    }
    for name, built in forms.items():
        assert form(graphs.write(built, tmp_path, name.replace(" ", "_"))) == name
