"""What came of one case, and the table of docs/models.md that all of them make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final

import onnx

from recurra.models.carried import body_of, is_loop
from recurra.models.graph import is_recurrent, walk
from recurra.models.repository import FILE, load
from recurra.models.seats import places
from tests.parity.case import Case

CLOSE: Final = 1e-6
_BEGIN: Final = "<!-- begin: written by make parity -->"
_END: Final = "<!-- end -->"
_HEAD: Final = (
    "layer",
    "exporter",
    "form in ONNX",
    "largest error",
    "nodes on CPU / CUDA",
    "streamable",
    "ragged",
    "differs by design",
)
_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"


@dataclass(frozen=True, eq=False)
class Finding:
    """One case.

    Attributes:
        form: which recurrent nodes the file has, and how many.
        error: the largest difference of a served reply; infinite where there was none.
        nodes: on the CPU provider and on CUDA's; None for CUDA where there is no GPU.
        streamable: chunks give what one long run gives.
        ragged: rows of several lengths may share a run.
        failure: what went wrong before anything could be compared.
    """

    case: Case
    form: str = ""
    error: float = inf
    nodes: tuple[int, int | None] = (0, None)
    streamable: bool = False
    ragged: bool = False
    failure: str = ""

    @property
    def good(self) -> bool:
        """It was served, and is within its tolerance, or differs by design."""
        return not self.failure and (self.error <= self.case.tolerance or bool(self.case.differs and self.error < inf))

    @property
    def row(self) -> tuple[str, ...]:
        cpu, cuda = self.nodes
        told = (
            self.form,
            f"{self.error:.0e}" + ("" if self.good else " **(too large)**"),
            f"{cpu} / {'-' if cuda is None else cuda}",
            _flag(self.streamable),
            _flag(self.ragged),
        )
        failed = (f"**failed**: {' '.join(self.failure.split())[:80]}", "", "", "", "")
        return (self.case.layer, self.case.exporter, *(failed if self.failure else told), self.case.differs)


def find(case: Case, folder: Path, error: float) -> Finding:
    """What is known of a case that was built and served."""
    model = load(folder)
    return Finding(
        case,
        form(folder),
        error,
        (model.nodes.get(_CPU, 0), model.nodes.get(_CUDA, 0) if _CUDA in model.providers else None),
        model.self_test.chunked,
        model.self_test.ragged,
    )


def form(folder: Path) -> str:
    """The recurrent nodes of a folder's file: "2 LSTM", "Loop (over LSTM)", or that it is one timestep."""
    graph = onnx.load(folder / "1" / FILE).graph
    counts = Counter[str]()
    for place in places(graph):
        if is_loop(place.node):
            inside = sorted({each.op_type for each in walk(body_of(place.node)) if is_recurrent(each)})
            counts[place.node.op_type + (f" (over {', '.join(inside)})" if inside else "")] += 1
        elif is_recurrent(place.node):
            counts[place.node.op_type] += 1
    return ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in counts.items()) or "one timestep"


def write_table(page: Path, findings: Sequence[Finding]) -> None:
    """Puts the table between the two marks of `page`."""
    text = page.read_text("utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    assert end, f"{page} lacks its marks"
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD)), *(_line(finding.row) for finding in findings)]
    note = "" if any(finding.nodes[1] is not None for finding in findings) else "\nNot measured on a GPU.\n"
    page.write_text("\n".join([before + _BEGIN, "", *lines, note, end]) + after, "utf-8")


def summary(findings: Sequence[Finding]) -> tuple[str, bool]:
    """One line for people, and whether every case is good, and nine of ten that may not differ are within CLOSE."""
    bound = [each for each in findings if not each.case.differs]
    good, close = sum(each.good for each in bound), sum(each.error <= CLOSE for each in bound)
    worst = max((each.error for each in bound if not each.failure), default=inf)
    line = f"{good} of {len(bound)} cases within their tolerance, {close} within {CLOSE:g}; largest error {worst:.1e}"
    others = len(findings) - len(bound)
    line += f"; {others} may differ by design" if others else ""
    return line, all(each.good for each in findings) and 10 * close >= 9 * len(bound)


def chosen(findings: Iterable[Finding], root: Path, budget: int) -> list[Path]:
    """Folders to commit, of `budget` bytes together: one of each form and exporter first, small ones first."""
    sizes = {each: _bytes(root / each.case.name) for each in findings if each.good and each.error <= 1e-5}
    first: dict[tuple[str, str], Finding] = {}
    ordered = sorted(sizes, key=sizes.__getitem__)
    for each in ordered:
        first.setdefault((each.case.exporter, each.form), each)
    picked: list[Path] = []
    for each in [*first.values(), *(each for each in ordered if each not in first.values())]:
        if sizes[each] <= budget:
            budget -= sizes[each]
            picked.append(root / each.case.name)
    return picked


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _flag(value: bool) -> str:  # noqa: FBT001 - a cell of the table
    return "yes" if value else "no"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
