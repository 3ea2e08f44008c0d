"""`recurra inspect`: what a model takes, gives and remembers, and what the self-test saw."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from recurra.models import plot, series
from recurra.models.horizon import FRACTION, TIMESTEPS, Fading, fading
from recurra.models.provider import PROVIDERS
from recurra.models.refusal import ModelRefused
from recurra.models.repository import FILE, SETTINGS, Model, load, load_file, wanted
from recurra.models.signature import StateSpec, TensorSpec


def inspect(argv: list[str]) -> int:
    """Prints a model; exit status 1, with the reason on stderr, if it is refused."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.input and not arguments.plot:
        parser.error("--input is for --plot")
    found = None
    try:
        model, pairs = _load(arguments.model, arguments.provider)
        if arguments.plot:
            given = series.read(arguments.input, model.signature) if arguments.input else None
            found = fading(model, given, timesteps=arguments.timesteps)
            plot.draw(found, arguments.plot, name=model.name, fraction=arguments.fraction)
    except ModelRefused as error:
        Console(stderr=True).print(f"[red]refused:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    if arguments.json:
        horizon = {"horizon": _horizon(found, arguments.fraction)} if found else {}
        print(json.dumps(_description(model, pairs) | horizon, indent=2))  # noqa: T201
        return 0
    console = Console()
    _print(console, model, pairs)
    if found:
        for name, curve in found.curves().items():
            console.print(plot.legend(name, curve, arguments.fraction), highlight=False, markup=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recurra inspect", description="Show a model's inputs, outputs, states and self-test."
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx|MODEL_DIR")
    parser.add_argument("--provider", choices=PROVIDERS, default="auto", help="where to run it (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    memory = parser.add_argument_group("the memory horizon: how a disturbance of one timestep fades")
    memory.add_argument("--plot", type=Path, metavar="OUT.png", help="draw it")
    memory.add_argument("--input", type=Path, metavar="FILE", help=".npy, .npz or .csv, a row a timestep; else noise")
    memory.add_argument(
        "--timesteps", type=_count, default=TIMESTEPS, metavar="N", help="to watch (default: %(default)s)"
    )
    memory.add_argument(
        "--fraction", type=_fraction, default=FRACTION, help="what counts as forgotten (default: %(default)s)"
    )
    return parser


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return count


def _fraction(text: str) -> float:
    if not 0 < (fraction := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return fraction


def _horizon(found: Fading, fraction: float) -> dict[str, Any]:
    layers = {layer: curve.horizon(fraction) for layer, curve in found.layers.items()}
    return {"fraction": fraction, "layers": layers, "outputs": found.outputs and found.outputs.horizon(fraction)}


def _load(path: Path, provider: str) -> tuple[Model, dict[str, str]]:
    """The model, and "graph input -> graph output" by the name of each of its states."""
    if path.is_dir():
        model = load(path.resolve(), provider=wanted(path, provider))
    elif path.is_file():
        model = _load_file(path.resolve(), provider)
    else:
        raise ModelRefused(f"there is no file or folder '{path}'")
    pairs = {state.spec.name: f"{state.input} -> {state.output}" for state in model.program.layout.states}
    return model, pairs


def _load_file(path: Path, provider: str) -> Model:
    """A file where a repository has it, with its model.toml; or any other, with the model.toml beside it."""
    version, folder = path.parent.name, path.parent.parent
    if path.name == FILE and version.isdecimal() and not (path.parent / SETTINGS).exists():
        return load_file(path, folder.name, version, folder, provider=wanted(folder, provider))
    return load_file(path, path.stem, "0", path.parent, provider=wanted(path.parent, provider))


def _description(model: Model, pairs: dict[str, str]) -> dict[str, Any]:
    test = model.self_test
    return {
        "name": model.name,
        "version": model.version,
        "inputs": [_tensor(spec) for spec in model.signature.inputs],
        "outputs": [_tensor(spec) for spec in model.signature.outputs],
        "start_inputs": [_tensor(spec) for spec in _start(model)],
        "states": [_state(spec, pairs) for spec in model.signature.states],
        "chunk_sizes": list(model.signature.chunk_sizes),
        "state_bytes": model.signature.state_bytes,
        "max_batch": model.max_batch,
        "layout": model.layout.hex(),
        "self_test": {
            "chunked": test.chunked,
            "batched": test.batched,
            "ragged": test.ragged,
            "chunked_error": test.chunked_error,
            "batched_error": test.batched_error,
            "notes": list(test.notes),
        },
        "providers": list(model.providers),
        "nodes": model.nodes,
        "strays": [asdict(stray) for stray in model.strays],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "dtype": spec.dtype.name,
        "shape": list(spec.shape),
        "has_time_axis": spec.has_time_axis,
        "bounds": list(spec.bounds) if spec.bounds else None,
    }


def _state(spec: StateSpec, pairs: dict[str, str]) -> dict[str, Any]:
    graph_input, _, graph_output = pairs.get(spec.name, "").partition(" -> ")
    return {
        "name": spec.name,
        "layer": spec.layer,
        "dtype": spec.dtype.name,
        "shape": list(spec.shape),
        "batch_axis": spec.batch_axis,
        "input": graph_input or None,
        "output": graph_output or None,
        "fresh": _fresh(spec),
    }


def _fresh(spec: StateSpec) -> str:
    """What a new session starts from, in a word."""
    if not spec.fresh.any():
        return "zeros"
    low, high = spec.fresh.min(), spec.fresh.max()
    return f"{low:g}" if low == high else f"values from {low:.3g} to {high:.3g}"


def _print(console: Console, model: Model, pairs: dict[str, str]) -> None:
    console.print(f"[bold]{escape(model.name)}[/] version {escape(model.version)}", highlight=False)
    tensors = {"Inputs": model.signature.inputs, "Outputs": model.signature.outputs, "Start inputs": _start(model)}
    for title, specs in tensors.items():
        if not specs:
            continue
        table = Table("name", "dtype", "shape", "values", title=title, title_justify="left")
        for spec in specs:
            values = f"{spec.bounds[0]} to {spec.bounds[1]}" if spec.bounds else "any"
            table.add_row(escape(spec.name), spec.dtype.name, escape(_shape(spec)), values)
        console.print(table)
    name, layer, pair_of = (Column(header, overflow="fold") for header in ("name", "layer", "graph input -> output"))
    table = Table(name, layer, "dtype", "shape", pair_of, "fresh", title="States")
    table.title_justify = "left"
    for state in model.signature.states:
        pair = pairs.get(state.name, "the last samples of the chunk before")
        shape = escape(str(list(state.shape)))
        table.add_row(escape(state.name), escape(state.layer), state.dtype.name, shape, escape(pair), _fresh(state))
    console.print(table)
    test = model.self_test
    console.print(f"chunks = one long run: {_flag(good=test.chunked)} (largest difference {test.chunked_error:.1e})")
    console.print(f"in a batch = alone: {_flag(good=test.batched)} (largest difference {test.batched_error:.1e})")
    console.print(f"rows of several lengths in a batch = alone: {_flag(good=test.ragged)}")
    for note in test.notes:
        console.print(f"  note: {escape(note)}", highlight=False, soft_wrap=True)
    sizes = ", ".join(map(str, model.signature.chunk_sizes)) or "any"
    console.print(f"chunk sizes: {sizes}; sessions in a batch: up to {model.max_batch}")
    nodes = ", ".join(f"{count} on {provider}" for provider, count in model.nodes.items())
    console.print(f"nodes: {nodes or 'unknown to this ONNX Runtime'}", highlight=False)
    for stray in model.strays:
        told = f"  on the CPU: {stray.op} '{escape(stray.name)}': {stray.reason}"
        console.print(told, highlight=False, soft_wrap=True)


def _start(model: Model) -> tuple[TensorSpec, ...]:
    return model.start.inputs if model.start else ()


def _shape(spec: TensorSpec) -> str:
    axes = [
        "batch",
        *(["time"] if spec.has_time_axis else []),
        *("any" if size is None else str(size) for size in spec.shape),
    ]
    return f"({', '.join(axes)})"


def _flag(*, good: bool) -> str:
    return "[green]yes[/]" if good else "[yellow]no[/]"
