"""Trains the example model `nowcaster`: the next radar frame of drifting rain, from the frames before it.

    python -m models.scripts.nowcaster --repository models/repository

Needs the extra `export` (Keras with TensorFlow, tf2onnx); two minutes on one core. Seeded: the same weights come out
each time, in a file whose constants tf2onnx may order otherwise.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import keras
import numpy as np
import onnxruntime
import tensorflow as tf
import tf2onnx

from models.scripts.rain import SIZE, Array, held_out, learned

SEED: Final = 7
FILTERS: Final = 12
KERNEL: Final = 5
SCALE: Final = 10.0
"""mm/h that the layers see as 1."""
EPOCHS: Final = 12


def build() -> keras.Model:
    """Frames (batch, time, 24, 24, 1) in mm/h to the frame after each: a ConvLSTM2D, and a head for the change."""
    frames = keras.Input((None, SIZE, SIZE, 1), name="frames")
    scaled = keras.layers.Rescaling(1 / SCALE)(frames)
    lstm = keras.layers.ConvLSTM2D(FILTERS, KERNEL, padding="same", return_sequences=True, name="conv_lstm")
    # A Conv2D of every frame: Keras' TimeDistributed is exported wrongly where the number of timesteps is open.
    change = keras.layers.Conv3D(1, (1, 3, 3), padding="same", name="head")(lstm(scaled))
    following = keras.layers.ReLU()(keras.layers.Add()([scaled, change]))
    return keras.Model(frames, keras.layers.Rescaling(SCALE)(following))


def train(frames: Array) -> keras.Model:
    keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = build()
    batch = 16
    rate = keras.optimizers.schedules.CosineDecay(4e-3, EPOCHS * len(frames) // batch)
    model.compile(keras.optimizers.Adam(rate, clipnorm=1.0), loss="mae")
    model.fit(frames[:, :-1], frames[:, 1:], batch_size=batch, epochs=EPOCHS, verbose=2)
    return model


def export(model: keras.Model, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    takes = tf.TensorSpec((None, None, SIZE, SIZE, 1), tf.float32, name="frames")

    @tf.function(input_signature=[takes])
    def run(frames: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"next_frame": model(frames, training=False)}

    tf2onnx.convert.from_function(run, input_signature=[takes], opset=17, output_path=str(path))


def report(path: Path, frames: Array) -> None:
    """Prints the exported file's mean absolute error on held-out sequences beside persistence (no change)."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    before, after = frames[:, :-1], frames[:, 1:]
    [forecast] = session.run(["next_frame"], {"frames": before})
    model_error, persistence_error = np.abs(forecast - after).mean(), np.abs(before - after).mean()
    print(f"{len(frames)} sequences, error {model_error:.3f} mm/h, persistence {persistence_error:.3f} mm/h")
    print(f"{path}: {path.stat().st_size} bytes")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repository", type=Path, default=Path(__file__).parents[1] / "repository")
    path = arguments.parse_args().repository / "nowcaster" / "1" / "model.onnx"
    export(train(learned()), path)
    report(path, held_out())


if __name__ == "__main__":
    main()
