"""The bench's own arithmetic, and a run of it that is as short as can be."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import cells, report, results, tables
from bench.cells import Cell

PAIRS = Cell("pairs", "lstm", 64, "committed")


def figures(**rows: list[float]) -> results.Figures:
    return {"rate": [1.0], "p50": [1.0], "p99": [2.0], "p999": [3.0], "messages": [10.0], **rows}


def test_floors_and_peaks_are_measured_before_what_rests_on_them():
    chosen = cells.chosen(only="at 50%")
    for cell in (cell for cell in chosen if cell.load):
        assert chosen.index(cell.floor) < chosen.index(cell._replace(load=0.0)) < chosen.index(cell)
    assert all(cell.load or cell.kind == "raw" or cell._replace(load=0.5) in chosen for cell in chosen)


def test_names_of_cells_are_their_own():
    every = cells.chosen()
    assert len({str(cell) for cell in every}) == len(every)


def test_ratios_are_taken_repeat_by_repeat_with_the_stores_cpu():
    costs = {
        PAIRS: figures(server=[10.0, 40.0, 9.0], store=[2.0, 8.0, 3.0]),
        PAIRS.floor: figures(server=[4.0, 16.0, 3.0]),
    }
    assert tables.over_raw(costs, PAIRS) == [3.0, 3.0, 4.0]
    assert tables.over_raw(costs, PAIRS, "server") == [2.5, 2.5, 3.0]
    assert tables.spread(tables.over_raw(costs, PAIRS)) == "3.0 (3.0-4.0)"


@pytest.mark.parametrize(("server", "verdict"), [(10.0, "met"), (10.5, "missed")])
def test_a_target_is_met_up_to_its_limit(server: float, verdict: str):
    costs = {PAIRS: figures(server=[server], store=[3.0]), PAIRS.floor: figures(server=[5.0])}
    [line] = [line for line in tables.targets(costs).splitlines() if line.startswith("| frames, committed")]
    assert line.endswith(f"| {verdict} |")


def test_what_was_not_measured_leaves_its_row_out():
    costs = {PAIRS.floor: figures(server=[5.0])}
    assert "committed:" not in tables.counts(costs)
    assert "frames" not in tables.loads(costs)


def test_cells_come_back_from_json_as_they_were(tmp_path: Path):
    found = {cell: figures(server=[1.25]) for cell in cells.chosen()}
    results.save("costs", results.rows(found), tmp_path / "r.json")
    results.save("sizes", {}, tmp_path / "r.json")
    kept = results.load(tmp_path / "r.json")
    assert kept.keys() == {"costs", "sizes"}
    assert results.cells(kept["costs"]["found"]) == found


def test_a_table_takes_the_place_of_the_last_one():
    page = "before\n<!-- loads -->\nold\n<!-- /loads -->\nafter\n"
    once = report.filled(page, {"loads": "| new |"})
    assert once == "before\n<!-- loads -->\n\n| new |\n\n<!-- /loads -->\nafter\n"
    assert report.filled(once, {"loads": "| new |"}) == once
    with pytest.raises(SystemExit, match="no place for the table 'counts'"):
        report.filled(page, {"counts": ""})


def test_the_page_has_a_place_for_every_table_that_is_kept():
    made = tables.every(results.load(results.KEPT))
    assert report.filled(report.PAGE.read_text(), made) == report.PAGE.read_text()


def test_a_run_measures_a_load_beside_its_floor_and_latency_at_half_of_it(tmp_path: Path):
    output = tmp_path / "r.json"
    only = ["--only", "singles lstm 64 committed everysec at 50%", "--seconds", "0.3", "--repeats", "2"]
    subprocess.run([sys.executable, "-m", "bench", *only, "--output", output], check=True, capture_output=True)
    found = results.cells(results.load(output)["costs"]["found"])
    single = Cell("singles", "lstm", 64, "committed")
    assert list(found) == [single.floor, single, single._replace(load=0.5)]
    assert all(len(row["rate"]) == 2 and min(row["rate"]) > 0 for row in found.values())
    half, peak = min(found[single._replace(load=0.5)]["messages"]), max(found[single]["messages"])
    assert half < peak
