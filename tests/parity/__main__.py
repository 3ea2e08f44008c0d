"""`python -m tests.parity`: builds each case in its framework, serves and compares it, and writes docs/models.md."""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.progress import track

from recurra.client import Client
from tests.parity.case import Case
from tests.parity.finding import Finding, chosen, find, summary, write_table
from tests.parity.served import largest_error, serving

_PROJECT: Final = Path(__file__).parents[2]
_OUT: Final = _PROJECT / "out" / "parity"
_COMMITTED: Final = Path(__file__).with_name("cases")
_COMMITTED_BYTES: Final = 400_000
_MODULES: Final = ("keras_cases", "torch_cases")


def main() -> int:
    """Exit status 1 if a case fails, or fewer than nine of ten are within 1e-6."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument(
        "cases", nargs="*", metavar="TEXT", help="only cases whose name has it; the table stays as it is"
    )
    parser.add_argument("--commit", action="store_true", help="renew tests/parity/cases, which `make test` runs")
    arguments = parser.parse_args()
    if arguments.commit and arguments.cases:
        parser.error("--commit takes all cases")
    cases = [case for case in _cases() if not arguments.cases or any(text in case.name for text in arguments.cases)]
    shutil.rmtree(_OUT, ignore_errors=True)
    _OUT.mkdir(parents=True)
    failures = dict(_built(cases))
    with serving(_OUT) as client:
        findings = [
            Finding(case, failure=failures[case.name]) if failures[case.name] else _compared(client, case)
            for case in track(cases, "comparing")
        ]
    for each in findings:
        if not each.good:
            sys.stderr.write(f"{each.case.name}: {each.failure or f'differs by {each.error:.2g}'}\n")
    if not arguments.cases:
        write_table(_PROJECT / "docs" / "models.md", findings)
    if arguments.commit:
        _commit(chosen(findings, _OUT, _COMMITTED_BYTES))
    line, met = summary(findings)
    sys.stdout.write(f"parity: {line}\n")
    return 0 if met else 1


def _cases() -> Iterator[Case]:
    """Those of both frameworks."""
    for name in _MODULES:
        try:
            module = importlib.import_module(f"tests.parity.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"tests.parity.{name}":
                raise
            sys.stderr.write(f"parity: skipped {name}: {error}\n")
            continue
        yield from module.CASES


def _built(cases: Sequence[Case]) -> Iterator[tuple[str, str]]:
    """Each case's name with what went wrong when it was built, empty for nothing."""
    for case in track(cases, "building"):
        folder, failure = _OUT / case.name, ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the frameworks' own, of their age
                case.build(folder).save(folder)
            (folder / "README.md").unlink()
        except Exception as error:  # noqa: BLE001 - one case fails, the others go on
            failure = f"{type(error).__name__}: {error}"
            shutil.rmtree(folder, ignore_errors=True)
        yield case.name, failure


def _compared(client: Client, case: Case) -> Finding:
    try:
        return find(case, _OUT / case.name, largest_error(client, _OUT / case.name))
    except Exception as error:  # noqa: BLE001 - one case fails, the others go on
        return Finding(case, failure=f"{type(error).__name__}: {error}")


def _commit(folders: Sequence[Path]) -> None:
    shutil.rmtree(_COMMITTED, ignore_errors=True)
    for folder in folders:
        shutil.copytree(folder, _COMMITTED / folder.name)


if __name__ == "__main__":
    sys.exit(main())
