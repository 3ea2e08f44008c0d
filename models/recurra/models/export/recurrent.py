"""A Keras model whose recurrent layers take their state in and give it out, instead of keeping or forgetting it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from recurra.models.export.backend import Layer, Tensor, keras, tf
from recurra.models.export.calls import changed, replaced
from recurra.models.export.native import Natives, has_node
from recurra.models.export.states import State, named
from recurra.models.refusal import ModelRefused


class Stateless:
    """A model as a function of inputs and states.

    Attributes:
        states: in the order in which the layers run; known after a rehearsal.
        timesteps: what the layers saw as such in the rehearsal.
        natives: the layers that are a node of ONNX each, known after a call.
        started: layers that were given their first states by their caller.

    """

    def __init__(self, model: Layer) -> None:
        self.states: list[State] = []
        self.timesteps: set[int] = set()
        self.started: set[str] = set()
        self.natives = Natives()
        self._model = model
        self._given: Iterator[Tensor] | None = None
        self._finals: list[Tensor] = []

    def rehearse(self, inputs: Tensor) -> list[Tensor]:
        """The outputs for `inputs` from the fresh states, which are known from then on."""
        self.states, self.timesteps = [], set()
        outputs, _ = self._run(inputs, None)
        return outputs

    def __call__(self, inputs: Tensor, states: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and new states."""
        return self._run(inputs, iter(states))

    def _run(self, inputs: Tensor, given: Iterator[Tensor] | None) -> tuple[list[Tensor], list[Tensor]]:
        self._given, self._finals, self.natives = given, [], Natives()
        with ExitStack() as stack:
            for layer in _sublayers(self._model):
                stack.enter_context(changed(layer, replaced(layer)))
            for owner, place, layer in _recurrent(self._model):
                stack.enter_context(changed(layer, self._opened(owner, place, layer)))
            outputs = self._model(inputs, training=False)
        return keras.tree.flatten(outputs), self._finals

    def _opened(self, owner: str, place: str, layer: Layer) -> dict[str, object]:
        """What makes a layer take its first state from here, if its caller gives none, and hand over its last."""
        first, loop = layer.get_initial_state, layer.inner_loop
        open_calls = []

        def get_initial_state(batch_size: Tensor) -> Tensor:
            fresh = first(batch_size)
            open_calls.append(fresh)
            given = self._given
            if given is None:
                self.states += named(owner, place, layer.cell, keras.tree.flatten(fresh), self.states)
                return fresh
            return keras.tree.map_structure(lambda _: next(given), fresh)

        def inner_loop(sequences: Tensor, initial_state: Tensor, mask: Tensor, training: bool = False) -> Tensor:  # noqa: FBT001, FBT002
            if not tf.executing_eagerly() and has_node(layer, mask):
                results = self.natives.trace(layer, sequences, initial_state)
            else:
                results = loop(sequences, initial_state, mask, training)
            if self._given is None:
                self.timesteps.add(sequences.shape[1])
            if open_calls:
                open_calls.clear()
                self._finals += keras.tree.flatten(results[2])
            else:
                self.started.add(owner)
            return results

        changes = {"get_initial_state": get_initial_state, "inner_loop": inner_loop, "stateful": False, "unroll": False}
        # cuDNN's kernels have no counterpart in ONNX.
        return changes | ({"use_cudnn": False} if hasattr(layer, "use_cudnn") else {})


def _recurrent(model: Layer) -> list[tuple[str, str, Layer]]:
    """All recurrent layers, each with the layer that a user sees, itself or its Bidirectional, and its place there."""
    found: dict[int, tuple[str, str, Layer]] = {}
    names = [layer.name for layer in _sublayers(model)]
    for path, layer in _layers(model):
        for inner in (layer, *_sublayers(layer)):
            if not isinstance(inner, keras.layers.RNN):
                continue
            if isinstance(layer, keras.layers.TimeDistributed):
                raise ModelRefused(
                    f"'{layer.name}' runs the recurrent layer '{inner.name}' anew at each timestep: its state is no "
                    "session's; export the layer inside TimeDistributed as a model of its own"
                )
            owner = path if names.count(layer.name) > 1 else layer.name
            place = owner if inner is layer else f"{owner}/{inner.name}"
            found.setdefault(id(inner), (owner, place, inner))
    return list(found.values())


def _layers(model: Layer, path: str = "") -> Iterator[tuple[str, Layer]]:
    """The layers of a model and of the models in it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer, f"{path}{layer.name}/")
        else:
            yield f"{path}{layer.name}", layer


def _sublayers(layer: Layer) -> list[Layer]:
    found: list[Layer] = layer._flatten_layers(include_self=False)  # noqa: SLF001
    return found
