"""`recurra import`: the model folder of another server made one that this server serves."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from recurra.models import triton
from recurra.models.refusal import ModelRefused
from recurra.models.repository import SETTINGS, Model, load, versions


def import_(argv: list[str]) -> int:
    """Writes a model.toml; exit status 1, with the reason on stderr, where the model cannot be served with it."""
    parser = argparse.ArgumentParser(prog="recurra import", description=__doc__)
    kinds = parser.add_subparsers(required=True, metavar="triton")
    kind = kinds.add_parser("triton", help="config.pbtxt to model.toml, which is proven before it is written")
    kind.add_argument("folder", type=Path, metavar="MODEL_DIR")
    folder: Path = parser.parse_args(argv).folder.resolve()
    try:
        found = triton.convert(folder, versions(folder))
        model = _written(folder, found)
    except ModelRefused as error:
        sys.stderr.write(f"refused: {error}\n")
        return 1
    states = ", ".join(state.name for state in model.signature.states)
    sys.stdout.write(f"{folder / SETTINGS}: version {model.version}, states {states}\n")
    for note in (*found.notes, *model.self_test.notes):
        sys.stdout.write(f"  note: {note}\n")
    return 0


def _written(folder: Path, found: triton.Converted) -> Model:
    """The model with its new settings, which are in the folder once it has been loaded with them elsewhere."""
    if (folder / SETTINGS).exists():
        raise ModelRefused(f"{folder / SETTINGS} exists")
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / folder.name
        draft.mkdir()
        for version in versions(folder):
            (draft / version).symlink_to(folder / version)
        (draft / SETTINGS).write_text(found.toml, "utf-8")
        for name, array in found.files.items():
            np.save(draft / name, array)
        model = load(draft, provider="cpu")
        for name in (*found.files, SETTINGS):
            shutil.copy(draft / name, folder / name)
    return model
