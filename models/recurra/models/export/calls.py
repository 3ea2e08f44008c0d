"""Keras layers whose own calls make graphs that are wrong, or tell too little, as other calls of the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from recurra.models.export.backend import Layer, Tensor, keras, tf


def replaced(layer: Layer) -> dict[str, object]:
    """The attributes that a layer must have while it is traced."""
    if isinstance(layer, keras.layers.TimeDistributed):
        return {"call": _folded(layer)}
    if isinstance(layer, keras.layers.Embedding):
        return {"call": _looked_up(layer)}
    return {}


@contextmanager
def changed(layer: Layer, attributes: dict[str, object]) -> Iterator[None]:
    """Other attributes for a while, past Keras' own tracking of them."""
    own: dict[str, object] = layer.__dict__
    kept = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del own[name]
        own.update(kept)


def _folded(layer: Layer) -> Callable[..., Tensor]:
    """TimeDistributed with time folded into the batch; Keras' own is wrong in a graph where both are free."""

    def call(inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:  # noqa: FBT001
        shape, inner = keras.ops.shape(inputs), layer.layer
        options = {"training": training} if inner._call_has_training_arg else {}  # noqa: SLF001
        if mask is not None and inner._call_has_mask_arg:  # noqa: SLF001
            options["mask"] = keras.ops.reshape(mask, (-1, *mask.shape[2:]))
        results = inner.call(keras.ops.reshape(inputs, (-1, *shape[2:])), **options)
        return keras.ops.reshape(results, (shape[0], shape[1], *results.shape[1:]))

    return call


def _looked_up(layer: Layer) -> Callable[..., Tensor]:
    """Embedding without its care for negative indices, so that the graph tells the bounds of its input."""

    def call(inputs: Tensor) -> Tensor:
        rows = tf.gather(layer.embeddings, keras.ops.cast(inputs, "int32"))
        return keras.ops.cast(rows, layer.compute_dtype)

    return call
