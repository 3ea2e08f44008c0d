"""The proof that a model may be served in chunks and batches, made each time it is loaded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from recurra.models.program import Program
from recurra.models.provider import ERRORS
from recurra.models.refusal import ModelRefused
from recurra.models.samples import Samples, row
from recurra.models.signature import Array, Signature

_ROWS: Final = 3
_PIECES: Final = (4, 1, 3)
_TOLERANCE: Final = {2: 1e-2, 4: 1e-5, 8: 1e-5}  # by bytes of a float
_ROUNDED: Final = {2: 1e-2, 4: 5e-3, 8: 1e-5}  # where products round their inputs to 10 bits
_DISTURBANCES: Final = (0.5, 10.0)
_PATIENCE: Final = 3  # chunks within which a disturbed state must show


@dataclass(frozen=True)
class SelfTest:
    """What a model was seen to do.

    Attributes:
        chunked: chunks, one after another, give what one long run gives. Where False, a chunk must not be cut.
        batched: sessions in one batch get what each gets alone. Where False, one session runs at a time.
        chunked_error, batched_error: the largest difference seen, of values above 1 relative to them.
        notes: for people.
        ragged: rows of several lengths, padded to one, get in outputs and states what each gets alone.

    """

    chunked: bool
    batched: bool
    chunked_error: float
    batched_error: float
    notes: tuple[str, ...] = ()
    ragged: bool = False


class ChunksDiffer(ModelRefused):
    """An output depends on later timesteps."""


def prove(
    program: Program,
    signature: Signature,
    *,
    batchable: bool,
    looks_back: bool,
    blanks: Sequence[float] = (),
    sure: Collection[str] = (),
) -> SelfTest:
    """Runs the checks.

    Args:
        batchable: the graph takes several sessions a call.
        looks_back: it has a layer that runs against time, which explains that chunks differ.
        blanks: values of an input that may mark a timestep as masked.
        sure: states that the graph itself carries: what they change may show seldom, as an output held while masked.

    Raises:
        ModelRefused: chunks differ for no such reason, or a state is never read.

    """
    trial = _Trial(program, signature, blanks)
    try:
        test = trial.chunks(looks_back=looks_back)
        if batchable:
            test = trial.batch(test)
        else:
            test = replace(test, batched=False, notes=(*test.notes, "it takes one session a run"))
        trial.influence(sure)
    except ERRORS as error:
        raise ModelRefused(
            f"it fails on some sizes of chunks: {' '.join(str(error).split())[:400]}; if it takes only chunks of "
            "certain sizes, list them in model.toml: chunk_sizes = [...] under [inputs.NAME]"
        ) from error
    return test


class _Trial:
    def __init__(self, program: Program, signature: Signature, blanks: Sequence[float]) -> None:
        self._run = program.run
        self._compare = partial(compare, exact=program.session.exact)
        self._signature = signature
        self._samples = Samples(signature)
        self._timed = [spec.has_time_axis for spec in signature.inputs]
        self._pieces = _pieces(signature.chunk_sizes)
        self._blanks = blanks

    def chunks(self, *, looks_back: bool) -> SelfTest:
        """Chunked against long, from the fresh state."""
        if len(self._pieces) == 1:
            note = "its chunk sizes leave no long run to compare with chunks"
            return SelfTest(chunked=not looks_back, batched=True, chunked_error=0.0, batched_error=0.0, notes=(note,))
        inputs = self._samples.inputs(1, sum(self._pieces))
        error, good = self._cut(inputs)
        for blank in self._blanks:
            worse, same = self._cut(self._samples.blanked(inputs, blank, first=1))
            error, good = max(error, worse), good and same
        notes: tuple[str, ...] = ()
        if not good and not looks_back:
            raise ChunksDiffer(
                "the output at a timestep depends on the whole chunk: chunks of "
                f"{', '.join(map(str, self._pieces))} timesteps differ from one long run by {error:.2g}. A mean, "
                "attention, normalisation or a convolution that looks ahead does that (pad it in front alone), or a "
                "state that was not found: list it in model.toml under [[states]], or give a convolution that is not "
                "padded its context = SAMPLES under [inputs.NAME]"
            )
        if not good:
            note = (
                "a layer runs against time: it sees a chunk at a time, as Keras' stateful=True does, so the replies "
                f"depend on how the input is cut into chunks (by {error:.2g} here)"
            )
            notes = (note,)
        return SelfTest(chunked=good, batched=True, chunked_error=error, batched_error=0.0, notes=notes)

    def _cut(self, inputs: list[Array]) -> tuple[float, bool]:
        """How far chunks of `inputs` are from one long run, and whether that is within the tolerance."""
        long, end = self._run(inputs, self._samples.fresh(1))
        states, parts, start = self._samples.fresh(1), [], 0
        for size in self._pieces:
            chunk = [x[:, start : start + size] if timed else x for x, timed in zip(inputs, self._timed, strict=True)]
            outputs, states = self._run(chunk, states)
            parts.append(outputs)
            start += size
        joined = [
            np.concatenate(pieces, axis=1) if spec.has_time_axis else pieces[-1]
            for spec, pieces in zip(self._signature.outputs, zip(*parts, strict=True), strict=True)
        ]
        return self._compare([*joined, *states], [*long, *end])

    def batch(self, test: SelfTest) -> SelfTest:
        """A batch against each of its rows alone, from states that differ."""
        inputs, states = self._warm(_ROWS)
        worst, good = 0.0, True
        for each in (inputs, *self._blanked(inputs)):
            together = self._run(each, states)
            for index in range(_ROWS):
                alone = self._run([x[index : index + 1] for x in each], self._rows(states, index))
                outputs = [output[index : index + 1] for output in together[0]]
                error, same = self._compare([*outputs, *self._rows(together[1], index)], [*alone[0], *alone[1]])
                worst, good = max(worst, error), good and same
        note = f"rows of one batch change each other (by {worst:.2g}): one session runs at a time"
        notes = test.notes if good else (*test.notes, note)
        return replace(test, batched=good, batched_error=worst, notes=notes)

    def influence(self, sure: Collection[str]) -> None:
        """Every state that is not sure, disturbed, changes an output, at once or later."""
        inputs, states = self._warm(1)
        unread = [index for index, spec in enumerate(self._signature.states) if spec.name not in sure]
        for each in (inputs, *self._blanked(inputs)):
            unread = self._unread(each, states, unread)
        if unread:
            raise ModelRefused(
                f"state '{self._signature.states[unread[0]].name}' has no influence on any output; if it is none, or "
                "paired with the wrong output, list the right pairs in model.toml under [[states]]"
            )

    def _unread(self, inputs: list[Array], states: list[Array], indices: Sequence[int]) -> list[int]:
        """Those of the states' `indices` that change nothing."""
        if not indices:
            return []
        baseline = self._outputs(inputs, states)
        noise, _ = self._compare(self._outputs(inputs, states), baseline)
        return [index for index in indices if not self._is_read(inputs, states, index, baseline, noise)]

    def _is_read(
        self, inputs: list[Array], states: list[Array], index: int, baseline: list[Array], noise: float
    ) -> bool:
        for scale in _DISTURBANCES:
            other = list(states)
            other[index] = self._samples.disturbed(states[index], scale)
            try:
                change, _ = self._compare(self._outputs(inputs, other), baseline)
            except ERRORS:  # such as a counter that left its table: it is read
                return True
            if change > noise:
                return True
        return False

    def _blanked(self, inputs: list[Array]) -> list[list[Array]]:
        """The inputs with some timesteps masked, in each way that the graph may know."""
        return [self._samples.blanked(inputs, blank, first=0) for blank in self._blanks]

    def _warm(self, rows: int) -> tuple[list[Array], list[Array]]:
        """Inputs of one chunk, and the states after another: valid ones, different in each row."""
        size = self._pieces[0]
        _, states = self._run(self._samples.inputs(rows, size), self._samples.fresh(rows))
        return self._samples.inputs(rows, size), states

    def _rows(self, states: Sequence[Array], index: int) -> list[Array]:
        return [row(state, index, spec) for state, spec in zip(states, self._signature.states, strict=True)]

    def _outputs(self, inputs: list[Array], states: list[Array]) -> list[Array]:
        """The outputs of some chunks in a row."""
        found = []
        for _ in range(_PATIENCE):
            outputs, states = self._run(inputs, states)
            found += outputs
        return found


def _pieces(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Chunk sizes to cut a long run into, of which the whole is allowed too; a single one if there is none such."""
    if not sizes:
        return _PIECES
    for first in sizes:
        for second in sizes:
            if first + second in sizes:
                return first, second
    return sizes[:1]


def compare(found: Sequence[Array], expected: Sequence[Array], *, exact: bool = True) -> tuple[float, bool]:
    """The largest difference, of values above 1 relative to them, and whether all are within their tolerance.

    `exact`: see Session.
    """
    worst, good, tolerances = 0.0, True, _TOLERANCE if exact else _ROUNDED
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape != theirs.shape:
            return float("inf"), False
        if ours.dtype.kind != "f":
            error, tolerance = float(not np.array_equal(ours, theirs)), 0.0
        else:
            left, right = ours.astype(np.float64), theirs.astype(np.float64)
            with np.errstate(invalid="ignore"):  # inf - inf
                difference = np.abs(left - right) / (1 + np.abs(right))
            same = (left == right) | (np.isnan(left) & np.isnan(right))
            difference = np.where(same, 0.0, np.nan_to_num(difference, nan=np.inf))
            error, tolerance = float(difference.max(initial=0.0)), tolerances[ours.dtype.itemsize]
        worst, good = max(worst, error), good and error <= tolerance
    return worst, good
