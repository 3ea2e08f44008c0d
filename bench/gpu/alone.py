"""What the service is held against: the model alone on the device, and a dict of hidden states in PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.gpu.cases import Case
from recurra.models import Model, Pool, PoolProgram
from recurra.models.pool import FIRST, FRESH
from recurra.models.samples import Samples


def raw(model: Model, batch: int, seconds: float) -> float:
    """Timesteps a second of ONNX Runtime with everything bound on the device: no input or output crosses."""
    session, layout, samples = model.program.session, model.program.layout, Samples(model.signature)
    inputs, states = samples.inputs(batch, 1), samples.fresh(batch)
    chunk = model.program.step(inputs, 0) if layout.stepwise else inputs
    fed, _ = model.program.feed(chunk, states)
    outputs = dict(zip(session.outputs, session.run(session.outputs, fed), strict=True))
    # The new states go to other memory than the old ones; the two change places after each run.
    shapes = {port.input: (fed[port.input].shape, port.spec.dtype) for port in layout.states}
    turns = [{name: session.buffer(*shape) for name, shape in shapes.items()} for _ in range(2)]
    bounds = []
    for now, then in (turns, turns[::-1]):
        bound = session.bound()
        for name, array in fed.items():
            if name not in now:
                bound.feed(name, array)
        for port in layout.states:
            now[port.input].update_inplace(fed[port.input])
            bound.take(port.input, now[port.input])
            bound.give(port.output, then[port.input])
        for port in layout.outputs:
            name = port.spec.name
            bound.give(name, session.buffer(outputs[name].shape, outputs[name].dtype))
        bounds.append(bound)

    def both() -> None:
        bounds[0].run()
        bounds[1].run()

    return 2 * batch * _rate(both, seconds)


def pooled(model: Model, batch: int, seconds: float, *, record: bool = False) -> tuple[float, str]:
    """Timesteps a second with states in a pool, and no service: inputs and outputs cross. And why none is recorded."""
    pool = Pool(model.signature, model.program.session, FIRST + 3 * batch)
    program, inputs = PoolProgram(model.program, pool, batch), Samples(model.signature).inputs(batch, 1)
    failure = program.record() if record else ""
    places = [FIRST + np.arange(batch) + batch * turn for turn in range(3)]
    program.run(inputs, [np.full(batch, FRESH), *places[:2]])

    def both() -> None:
        program.run(inputs, places)
        program.run(inputs, [places[1], places[0], places[2]])

    return 2 * batch * _rate(both, seconds), failure


def eager(case: Case, batch: int, seconds: float) -> float:
    """Timesteps a second of PyTorch with a dict of each session's states."""
    import torch  # noqa: PLC0415 # where there is one

    where = "cuda" if torch.cuda.is_available() else "cpu"
    step: Callable[[Any, Any], Any]
    if case.peer:
        features, layers, hidden = case.peer
        net, head = torch.nn.LSTM(features, hidden, layers).to(where), torch.nn.Linear(hidden, 16).to(where)
        fresh, axis = [torch.zeros(layers, 1, hidden, device=where) for _ in "hc"], 1

        def step(x: Any, states: Any) -> Any:
            y, news = net(x[None], tuple(states))
            return head(y[0]), news
    else:
        first = torch.nn.Conv2d(1 + case.filters, 4 * case.filters, 3, padding=1).to(where)
        last = torch.nn.Conv2d(case.filters, 1, 1).to(where)
        fresh, axis = [torch.zeros(1, case.filters, case.side, case.side, device=where) for _ in "hc"], 0

        def step(x: Any, states: Any) -> Any:
            i, f, g, o = first(torch.cat([x, states[0]], 1)).chunk(4, 1)
            cell = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            return last(hidden), (hidden, cell)

    held = {str(number): fresh for number in range(batch)}
    x = np.random.default_rng(0).standard_normal((batch, *case.shape), np.float32)

    def one() -> None:
        with torch.inference_mode():
            states = [torch.cat([held[name][kind] for name in held], axis) for kind in range(2)]
            y, news = step(torch.from_numpy(x).to(where), states)
            for name, *parts in zip(held, *(new.split(1, axis) for new in news), strict=True):
                held[name] = parts
            y.cpu()

    return batch * _rate(one, seconds)


def _rate(run: Callable[[], None], seconds: float) -> float:
    """Runs a second, after one that is not counted."""
    run()
    count, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        run()
        count += 1
    return count / taken
