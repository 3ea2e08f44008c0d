"""Keras on TensorFlow, started without its chatter."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

__all__ = ["Layer", "Tensor", "keras", "quiet", "tf", "tf2onnx"]

# The frameworks have no types.
Layer: TypeAlias = Any
Tensor: TypeAlias = Any


@contextmanager
def quiet() -> Iterator[None]:
    """Holds back what native code writes to stderr, and lets it through only if there is an error."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        kept = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


if "keras" not in sys.modules:  # a model of any backend loads on this one
    os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with quiet():
    import keras
    import tensorflow as tf
    import tf2onnx

tf.get_logger().setLevel("ERROR")
logging.getLogger("tf2onnx").setLevel("CRITICAL")  # traced.py tells what it could not write
