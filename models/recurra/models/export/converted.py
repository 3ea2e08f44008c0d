"""A function of TensorFlow as an ONNX graph, by tf2onnx."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from onnx import GraphProto, ModelProto, defs, numpy_helper

from recurra.models.export.backend import Tensor, quiet, tf, tf2onnx
from recurra.models.graph import walk
from recurra.models.refusal import ModelRefused

_OPSET: Final = 17


def converted(call: Callable[..., dict[str, Tensor]], specs: Sequence[Tensor]) -> ModelProto:
    """The graph of `call` for tensors of these `specs`; what ONNX lacks is left in it."""
    function = tf.function(call, input_signature=specs, autograph=False)
    with quiet(), _inlined(), tf.device("/CPU:0"):
        proto: ModelProto
        proto, _ = tf2onnx.convert.from_function(function, input_signature=specs, opset=_OPSET)
    _fill_in(proto.graph, function.get_concrete_function().graph.captures)
    return proto


def refuse_unknown(graph: GraphProto) -> None:
    """Raises ModelRefused naming the operations that ONNX lacks."""
    unknown = sorted({node.op_type for node in walk(graph) if not defs.has(node.op_type, node.domain)})
    if unknown:
        raise ModelRefused(
            f"ONNX has nothing for TensorFlow's {', '.join(unknown)}; export the model without the layer that needs "
            "it, and do that part outside of the model"
        )


def _fill_in(graph: GraphProto, captures: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Tensors that a layer holds beside its variables, as Normalization does, are inputs to tf2onnx: gives the values.

    Args:
        captures: each value, and the input that it is in TensorFlow's graph.

    """
    held = {place.name: value.numpy() for value, place in captures if value.dtype != tf.resource}
    inputs = [value for value in graph.input if value.name not in held]
    graph.initializer.extend(
        numpy_helper.from_array(held[value.name], value.name) for value in graph.input if value.name in held
    )
    del graph.input[:]
    graph.input.extend(inputs)


@contextmanager
def _inlined() -> Iterator[None]:
    """Functions in the traced one become part of it; Keras compiles some convolutions, which ONNX could not call."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)
