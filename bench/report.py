"""The tables of docs/performance.md and its pictures, from what was measured.

    python -m bench.report [--input FILE]

A table stands between two comments, <!-- name --> and <!-- /name -->; what is between them is replaced.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from bench import pictures, results, tables

PAGE: Final = Path(__file__).parents[1] / "docs" / "performance.md"


def main() -> None:
    """Write the tables and the pictures of what there is."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--input", type=Path, default=results.KEPT)
    found = results.load(parser.parse_args().input)
    PAGE.write_text(filled(PAGE.read_text(), tables.every(found)))
    for path in pictures.draw(found, PAGE.parent):
        print(path)


def filled(page: str, made: dict[str, str]) -> str:
    """The page with these tables in their places. Exits if it has no place for one."""
    for name, table in made.items():
        before, opening, rest = page.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- /{name} -->")
        if not closing:
            sys.exit(f"{PAGE.name} has no place for the table '{name}'")
        page = f"{before}{opening}\n{table}\n\n{closing}{after}"
    return page


if __name__ == "__main__":
    main()
