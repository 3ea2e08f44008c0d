"""A lifted graph against the file as it came: from the fresh state both give the same."""

from __future__ import annotations

from typing import Final

from recurra.models.program import Program
from recurra.models.provider import ERRORS
from recurra.models.refusal import ModelRefused
from recurra.models.samples import Samples
from recurra.models.selftest import compare

_TIMESTEPS: Final = 5
_FAILURES: Final[tuple[type[Exception], ...]] = (ModelRefused, *ERRORS)


def check(original: bytes, lifted: Program) -> tuple[str, ...]:
    """Notes for people. Raises ModelRefused if the outputs differ, which would be a fault of the lift."""
    layout = lifted.layout
    samples = Samples(layout.signature())
    timesteps = layout.chunk_sizes[0] if layout.chunk_sizes else _TIMESTEPS
    inputs = samples.inputs(1, timesteps)
    fed, _ = lifted.feed(lifted.step(inputs, 0) if layout.stepwise else inputs, samples.fresh(1))
    names = [port.spec.name for port in layout.outputs]
    try:
        session = lifted.session.another(original)
        expected = session.run(names, {name: array for name, array in fed.items() if name in session.inputs})
    except _FAILURES as failure:
        # Such as a file frozen at a batch of four, which the lift set free.
        return (f"the file as it came does not run alone: {' '.join(str(failure).split())[:200]}",)
    error, good = compare(lifted.raw(names, fed), expected)
    if not good:
        raise ModelRefused(
            f"lifted, and from its fresh state, the model differs from the file by {error:.2g}; expose its state as "
            "inputs and outputs of the graph, and please report this"
        )
    return ()
