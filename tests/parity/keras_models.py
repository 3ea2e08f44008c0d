"""Small Keras models with random weights, and how Keras itself runs them statefully."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recurra.models.export.backend import keras
from recurra.models.export.keras import export
from recurra.models.repository import Model
from tests.parity.case import CHUNKS, RESET_AFTER, ROWS, TIMESTEPS, Array, Oracle

layers = keras.layers


@keras.saving.register_keras_serializable(package="parity")
class LeakyCell(layers.Layer):
    """A cell that Keras lacks: it forgets half, and shows its state squared."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units = self.state_size = self.output_size = units

    def build(self, shape: tuple[int, ...]) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.recurrent_kernel = self.add_weight(shape=(self.units, self.units), name="recurrent_kernel")

    def call(self, inputs: Any, states: Any) -> tuple[Any, list[Any]]:
        state = 0.5 * states[0] + keras.ops.tanh(inputs @ self.kernel + states[0] @ self.recurrent_kernel)
        return state * state, [state]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


# Makes a model: of the batch of a stateful one, None for one that is not.
Make = Callable[[int | None], Any]


def single(layer: Callable[..., Any], *, shape: Sequence[int] = (3,), before: Sequence[Callable[[], Any]] = ()) -> Make:
    """One recurrent layer called "rnn", of `layer(name=..., stateful=...)`, behind others."""

    def make(batch: int | None) -> Any:
        stack = [keras.Input(shape=(None, *shape), batch_size=batch, name="x")]
        stack += [each() for each in before]
        return keras.Sequential([*stack, layer(name="rnn", stateful=bool(batch))])

    return make


def build(make: Make, folder: Path, *, reset: str = "rnn", blank: Sequence[tuple[int, int]] = ()) -> Oracle:
    """Exports a model, and runs its stateful twin in chunks.

    Args:
        blank: (row, timestep) that are 0 in every input.

    """
    model = randomised(make(None), folder.name)
    exported = export(model, folder)
    twin = make(ROWS)
    twin.set_weights(model.get_weights())
    inputs = drawn(exported, folder.name, blank)
    return Oracle(inputs, in_chunks(exported, inputs, twin, twin.get_layer(reset).reset_state), reset)


def randomised(model: Any, name: str) -> Any:
    """The model with weights of its name's own."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    model.set_weights([random.normal(0, 0.4, weight.shape) for weight in model.get_weights()])
    return model


def drawn(model: Model, name: str, blank: Sequence[tuple[int, int]] = ()) -> dict[str, Array]:
    """Random inputs for an exported model."""
    random = np.random.default_rng(zlib.crc32(name.encode()) + 1)
    inputs = {}
    for spec in model.signature.inputs:
        shape = (ROWS, *((TIMESTEPS,) if spec.has_time_axis else ()), *(size or 1 for size in spec.shape))
        array = random.normal(size=shape)
        if spec.bounds:
            array = random.integers(1, spec.bounds[1], shape, endpoint=True)
        for row, timestep in blank:
            array[row, timestep] = 0
        inputs[spec.name] = array.astype(spec.dtype)
    return inputs


def in_chunks(
    exported: Model, inputs: dict[str, Array], call: Callable[..., Any], reset: Callable[[], None]
) -> dict[str, Array]:
    """What `call` gives chunk by chunk, with one reset, by the exported model's names."""
    parts: list[list[Array]] = [[] for _ in exported.signature.outputs]
    start = 0
    for index, size in enumerate(CHUNKS):
        if index == RESET_AFTER:
            reset()
        chunk = {
            spec.name: inputs[spec.name][:, start : start + size] if spec.has_time_axis else inputs[spec.name]
            for spec in exported.signature.inputs
        }
        outputs = keras.tree.flatten(call(chunk if len(chunk) > 1 else next(iter(chunk.values()))))
        for part, output in zip(parts, outputs, strict=True):
            part.append(np.asarray(output))
        start += size
    join = {True: lambda part: np.concatenate(part, axis=1), False: lambda part: np.stack(part, axis=1)}
    specs = exported.signature.outputs
    return {spec.name: join[spec.has_time_axis](part) for spec, part in zip(specs, parts, strict=True)}


def by_hand(layer: Callable[[], Any], folder: Path) -> Oracle:
    """A recurrent layer that Keras cannot run with stateful=True: its states are carried from call to call."""
    model = randomised(keras.Sequential([keras.Input((None, 3), name="x"), layer()]), folder.name)
    exported = export(model, folder)
    rnn = model.get_layer("rnn")
    rnn.return_state = True
    states = _Carried(rnn.get_initial_state(ROWS), lambda chunk, before: rnn(chunk, initial_state=before))
    inputs = drawn(exported, folder.name)
    return Oracle(inputs, in_chunks(exported, inputs, states.call, states.reset), "rnn")


def of_cell(cell: Any, folder: Path, *, shape: Sequence[int] = (3,)) -> Oracle:
    """A cell as a model of one timestep, called for each."""
    cell.build((None, *shape))
    cell.built = True
    exported = export(randomised(cell, folder.name), folder, input_shape=shape)
    fresh = cell.get_initial_state(ROWS) if hasattr(cell, "get_initial_state") else np.zeros((ROWS, cell.units), "f")

    def step(x: Array, before: Any) -> list[Any]:
        output, states = cell(x, before)
        return [output, *(states if isinstance(states, list) else [states])]

    return _stepwise(exported, folder, fresh if isinstance(fresh, list) else [fresh], step, cell.name)


def of_step(folder: Path) -> Oracle:
    """A model of one timestep around a cell: states come in another order than they go out, between data."""
    sizes = {"x": 3, "memory": 4, "hidden": 4}
    x, memory, hidden = (keras.Input((size,), name=name) for name, size in sizes.items())
    output, (new_hidden, new_memory) = layers.LSTMCell(4, name="cell")(layers.Dense(3)(x), [hidden, memory])
    model = keras.Model([memory, x, hidden], [new_hidden, layers.Dense(2, name="y")(output), new_memory])
    exported = export(randomised(model, folder.name), folder)

    def step(x: Array, before: Any) -> list[Any]:
        new_hidden, y, new_memory = model([before[1], keras.ops.convert_to_tensor(x), before[0]])
        return [y, new_hidden, new_memory]

    return _stepwise(exported, folder, [keras.ops.zeros((ROWS, 4))] * 2, step, "cell")


def _stepwise(
    exported: Model, folder: Path, fresh: Any, step: Callable[[Array, Any], Sequence[Any]], reset: str
) -> Oracle:
    states, inputs = _Carried(fresh, step), drawn(exported, folder.name)

    def call(chunk: Array) -> Any:
        return np.stack([states.call(chunk[:, timestep]) for timestep in range(chunk.shape[1])], axis=1)

    return Oracle(inputs, in_chunks(exported, inputs, call, states.reset), reset)


class _Carried:
    """States handed from one call to the next."""

    def __init__(self, fresh: Any, call: Callable[[Any, Any], Sequence[Any]]) -> None:
        self._fresh, self._call = fresh, call
        self.reset()

    def reset(self) -> None:
        self._states = self._fresh

    def call(self, inputs: Array) -> Any:
        output, *states = self._call(inputs, self._states)
        self._states = states
        return output
