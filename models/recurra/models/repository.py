"""Models on disk: `<model>/<version>/model.onnx`, beside it start.onnx or not, and an optional `<model>/model.toml`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import onnx

from recurra.models import config, fidelity, source, start
from recurra.models.axes import plans
from recurra.models.config import ModelConfig
from recurra.models.culprit import culprit
from recurra.models.graph import blanks, looks_back
from recurra.models.layout import Layout
from recurra.models.placement import Stray, strays
from recurra.models.prepare import Prepared, prepare
from recurra.models.probe import probe
from recurra.models.program import Program
from recurra.models.provider import choose
from recurra.models.ragged import ragged
from recurra.models.refusal import ModelRefused
from recurra.models.selftest import ChunksDiffer, SelfTest, prove
from recurra.models.session import Session
from recurra.models.signature import Signature
from recurra.models.start import Start

FILE: Final = "model.onnx"
START: Final = "start.onnx"
SETTINGS: Final = "model.toml"
_LENGTHS: Final = re.compile(r"(.*_)?(len|lens|length|lengths)", re.IGNORECASE)
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Model:
    """A model that is ready to serve.

    Attributes:
        ragged: the program for batches whose rows have several lengths, padded; None where rows must have one length.
        start: makes the states that a session starts from out of a source, where the model has a start.onnx.
        max_batch: sessions in one run at most; 1 where the self-test found that they disturb each other.
        layout: 16 bytes that tell whether a stored state fits: a digest of the states' names, dtypes and shapes.
        providers: ONNX Runtime's, in order of preference.
        nodes: how many of the graph's nodes each provider runs.
        strays: those that the CPU runs though the model is on a GPU.

    """

    name: str
    version: str
    signature: Signature
    program: Program
    ragged: Program | None
    start: Start | None
    config: ModelConfig
    self_test: SelfTest
    max_batch: int
    layout: bytes
    providers: tuple[str, ...]
    nodes: dict[str, int]
    strays: tuple[Stray, ...] = ()


def find(repository: Path) -> dict[str, Path]:
    """The model folders by name, sorted: those that hold a version. Raises ModelRefused if `repository` is no folder.

    Folders whose name no model may have are left out, and so is what is no folder.
    """
    if not repository.is_dir():
        raise ModelRefused(f"the model repository '{repository}' is no folder")
    return {
        folder.name: folder
        for folder in sorted(repository.iterdir())
        if folder.is_dir() and is_name(folder.name) and (versions(folder) or (folder / SETTINGS).exists())
    }


def wanted(model_dir: Path, provider: str) -> str:
    """The provider that the model's model.toml asks for, else `provider`. Raises ModelRefused for a bad model.toml."""
    return config.read(model_dir / SETTINGS).provider or provider


def is_name(name: str) -> bool:
    """Whether a model may have this name."""
    return _NAME.fullmatch(name) is not None and name not in (".", "..")


def load(model_dir: Path, *, provider: str = "auto", made_for: str = "", threads: int = 1) -> Model:
    """The highest version in `model_dir`, proven. Raises ModelRefused for everything that is wrong with it.

    `made_for`: the provider that the graph's form is for, where it is not the one that runs it. `threads`: of one run.
    """
    found = versions(model_dir)
    if not found:
        raise ModelRefused(f"'{model_dir.name}' has no version: put the file at {model_dir.name}/1/{FILE}")
    version = found[-1]
    path = model_dir / version / FILE
    return load_file(path, model_dir.name, version, model_dir, provider=provider, made_for=made_for, threads=threads)


def load_file(
    path: Path,
    name: str,
    version: str,
    folder: Path,
    *,
    provider: str = "auto",
    made_for: str = "",
    threads: int = 1,
) -> Model:
    """The model in one file, with the model.toml in `folder`; see `load`. Raises ModelRefused."""
    if not is_name(name):
        raise ModelRefused(f"'{name}' is no name for a model; use up to 64 letters, digits, dots, dashes, underscores")
    settings = config.read(folder / SETTINGS)
    try:
        model = source.read(path, settings.sha256)
        original = model.SerializeToString()
        prepared = prepare(model, settings, folder, gpu=(made_for or choose(provider).provider) != "cpu")
        session = Session(prepared.content, provider, threads, tf32=settings.tf32)
        layout, self_test = _prove(session, prepared)
        program = Program(session, layout)
        padded = ragged(prepared.content, program) if self_test.batched else None
        notes = self_test.notes + _about_lengths(layout.signature())
        self_test = replace(self_test, ragged=padded is not None, notes=notes)
        starting = None
        if path.name == FILE:  # beside any other file it may be another model's
            starting = start.read(path.with_name(START), settings.start_sha256, layout, session)
        if any(pair.origin == "lifted" for pair in prepared.pairs):
            self_test = replace(self_test, notes=self_test.notes + fidelity.check(original, program))
    except ModelRefused:
        raise
    except Exception as error:  # a file from a stranger may be wrong in ways that nobody thought of
        raise ModelRefused(f"{path.name} cannot be made ready: {type(error).__name__}: {error}") from error
    signature = layout.signature()
    return Model(
        name=name,
        version=version,
        signature=signature,
        program=program,
        ragged=padded,
        start=starting,
        config=settings,
        self_test=self_test,
        max_batch=settings.max_batch if self_test.batched else 1,
        layout=_digest(signature),
        providers=session.providers,
        nodes=session.nodes,
        strays=strays(onnx.load_model_from_string(session.model).graph, session.assigned) if session.on_gpu else (),
    )


def _about_lengths(signature: Signature) -> tuple[str, ...]:
    """A note on an input that may be the lengths of padded rows, of which the recurrent nodes know nothing."""
    return tuple(
        f"input '{spec.name}' looks like the lengths of padded rows, but the state goes on over the padding: leave it "
        "out of the model, and send no padding"
        for spec in signature.inputs
        if spec.dtype.kind in "iu" and not spec.has_time_axis and not spec.shape and _LENGTHS.fullmatch(spec.name)
    )


def _prove(session: Session, prepared: Prepared) -> tuple[Layout, SelfTest]:
    """The likeliest reading of the axes that runs and passes the self-test.

    A far-fetched reading is tried only while no likelier one runs: a mean over time would pass as a model of single
    timesteps. One whose batches are not independent is kept while another equally likely one may do better.
    """
    best: tuple[Layout, SelfTest] | None = None
    refusal: ModelRefused | None = None
    ran_at: int | None = None
    for plan in plans(prepared):
        if ran_at is not None and plan.cost > ran_at:
            break
        try:
            layout, notes = probe(session, prepared, plan)
        except ModelRefused as error:
            refusal = refusal or error
            continue
        if ran_at is None:
            ran_at, refusal = plan.cost, None
        try:
            test = _tested(session, prepared, layout)
        except ModelRefused as error:
            refusal = refusal or error
            continue
        test = SelfTest(test.chunked, test.batched, test.chunked_error, test.batched_error, notes + test.notes)
        if best is None or (test.batched, test.chunked) > (best[1].batched, best[1].chunked):
            best = layout, test
        if test.batched and test.chunked:
            break
    if best is None:
        if refusal and prepared.doubts:
            raise ModelRefused(f"{refusal}. Besides: {'; '.join(prepared.doubts)}")
        raise refusal or ModelRefused("no reading of the inputs' batch and time axes runs; give them in model.toml")
    return best


def _tested(session: Session, prepared: Prepared, layout: Layout) -> SelfTest:
    program, graph = Program(session, layout), prepared.graph
    try:
        return prove(
            program,
            layout.signature(),
            batchable=layout.batchable,
            looks_back=looks_back(graph),
            blanks=blanks(graph),
            sure=[pair.name for pair in prepared.pairs if pair.origin in ("lifted", "control")],
        )
    except ChunksDiffer as error:
        node = culprit(prepared.content, program)
        raise ModelRefused(f"{error}. The first to do so is {node}" if node else str(error)) from error


def versions(folder: Path) -> list[str]:
    """Version folders that hold a file, by number."""
    if not folder.is_dir():
        return []
    found = [each.name for each in folder.iterdir() if each.name.isdecimal() and (each / FILE).is_file()]
    return sorted(found, key=int)


def _digest(signature: Signature) -> bytes:
    layout = [(state.name, state.dtype.str, state.shape) for state in signature.states]
    return hashlib.sha256(repr(layout).encode()).digest()[:16]
