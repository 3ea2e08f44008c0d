"""Trains the example model `nowcaster`: the next radar frame of drifting rain, from the frames before it.

    python -m models.scripts.nowcaster --repository models/repository

Needs the extra `export` (Keras with TensorFlow); two minutes on one core. Seeded: the same weights come out each time,
in a file whose constants tf2onnx may order otherwise.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Final

import keras
import numpy as np
import tensorflow as tf

from models.scripts.rain import SIZE, Array, held_out, learned
from recurra.models import Model
from recurra.models.export.keras import export
from recurra.models.samples import Samples

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
    change = keras.layers.Conv3D(1, (1, 3, 3), padding="same", name="head")(lstm(scaled))  # of each frame alone
    following = keras.layers.ReLU()(keras.layers.Add()([scaled, change]))
    return keras.Model(frames, keras.layers.Rescaling(SCALE, name="next_frame")(following))


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


def report(model: Model, frames: Array) -> None:
    """Prints the served model's mean absolute error on held-out sequences beside persistence (no change)."""
    before, after = frames[:, :-1], frames[:, 1:]
    (forecast,), _ = model.program.run([before], Samples(model.signature).fresh(len(before)))
    model_error, persistence_error = np.abs(forecast - after).mean(), np.abs(before - after).mean()
    print(f"{len(frames)} sequences, error {model_error:.3f} mm/h, persistence {persistence_error:.3f} mm/h")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repository", type=Path, default=Path(__file__).parents[1] / "repository")
    folder = arguments.parse_args().repository / "nowcaster"
    trained = train(learned())
    shutil.rmtree(folder / "1", ignore_errors=True)
    report(export(trained, folder), held_out())


if __name__ == "__main__":
    main()
