"""`recurra export`: a model of Keras or PyTorch written as a folder that the server serves."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Final

from recurra.models.export.folder import check
from recurra.models.refusal import ModelRefused
from recurra.models.repository import Model

_FRAMEWORKS: Final = ("keras", "torch")


def export(argv: list[str]) -> int:
    """Writes a model folder; exit status 1, with the reason on stderr, where that cannot be done."""
    arguments = _parser().parse_args(argv)
    try:
        check(arguments.out, arguments.version)
        exporter = importlib.import_module(f"recurra.models.export.{arguments.framework}")
        model: Model = exporter.from_command(arguments)
    except ImportError as error:
        sys.stderr.write(f"`recurra export` needs more packages ({error}): pip install 'recurra[export]'\n")
        return 1
    except ModelRefused as error:
        sys.stderr.write(f"refused: {error}\n")
        return 1
    states = ", ".join(state.name for state in model.signature.states)
    sys.stdout.write(f"{arguments.out}: version {model.version}, states {states}\n")
    for note in model.self_test.notes:
        sys.stdout.write(f"  note: {note}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recurra export", description=__doc__)
    kinds = parser.add_subparsers(dest="framework", required=True, metavar="keras|torch")
    keras = kinds.add_parser("keras", help="a .keras or .h5 file")
    keras.add_argument("model", type=Path, metavar="MODEL.keras|MODEL.h5")
    keras.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module that registers custom layers",
    )
    keras.add_argument(
        "--start", type=Path, metavar="ENCODER", help="a file whose outputs are the model's first states"
    )
    torch = kinds.add_parser("torch", help="a PyTorch module")
    torch.add_argument("model", metavar="MODULE:ATTR", help="an nn.Module, or a function that makes one")
    for flag, size, what in (
        ("--input", "batch,time,8", "an argument of forward; a word is a size that may be any"),
        ("--state", "batch,16", "one that forward gives back, new"),
    ):
        torch.add_argument(flag, action="append", default=[], metavar=f"NAME=float32[{size}]", help=what)
    torch.add_argument("--start", metavar="MODULE:ATTR", help="an encoder, whose outputs are the model's first states")
    torch.add_argument("--start-input", action="append", default=[], metavar="NAME=...", help="an argument of it")
    for each in (keras, torch):
        each.add_argument("out", type=Path, metavar="OUT", help="the model folder to write; its name is the model's")
        each.add_argument("--version", type=int, default=1, help="the version to write (default: %(default)s)")
    return parser
