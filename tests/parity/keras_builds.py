"""How each case of Keras is built."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from recurra.models.export.backend import keras
from recurra.models.export.keras import export
from tests.parity import keras_2
from tests.parity.case import ROWS, Oracle
from tests.parity.keras_models import LeakyCell, build, by_hand, drawn, in_chunks, of_cell, of_step, randomised, single

layers = keras.layers

INSIDE: Final = ((0, 1), (0, 2), (0, 6), (0, 9), (0, 11), (0, 12), (1, 3), (1, 7))  # no chunk starts there
AT_STARTS: Final = ((0, 4), (0, 5), (1, 8), (1, 10), (1, 11))


def sequences(kind: Any, units: int = 4, **options: Any) -> Callable[..., Any]:
    return partial(kind, units, return_sequences=True, **options)


def conv(rank: int, form: str, **options: Any) -> Callable[[Path], Oracle]:
    sizes = {1: (5,), 2: (4, 3), 3: (3, 3, 2)}[rank]
    options = {"kernel_size": 2, "padding": "same", "return_sequences": True, "data_format": form, **options}
    layer = partial(getattr(layers, f"ConvLSTM{rank}D"), 2, **options)
    return partial(build, single(layer, shape=(*sizes, 2) if form == "channels_last" else (2, *sizes)))


def rnn(cell: Callable[[], Any], **options: Any) -> Callable[..., Any]:
    return lambda **more: layers.RNN(cell(), **{"return_sequences": True, **options, **more})


def bidirectional(layer: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda name, stateful: layers.Bidirectional(layer(stateful=stateful), name=name, **options)


def stacked(**options: Any) -> Any:
    return layers.RNN(layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(4)]), name="rnn", **options)


def masked(layer: Callable[..., Any], blank: Any = INSIDE) -> Callable[[Path], Oracle]:
    return partial(build, single(layer, before=[layers.Masking]), blank=blank)


def unrolled(kind: Any, folder: Path) -> Oracle:
    """Its twin is the layer alone, which unrolls each chunk that it is given."""
    model = randomised(
        keras.Sequential([keras.Input((5, 3), name="x"), kind(4, return_sequences=True, unroll=True, name="rnn")]),
        folder.name,
    )
    exported = export(model, folder)
    twin = kind(4, return_sequences=True, unroll=True, stateful=True)
    twin.build((ROWS, None, 3))
    twin.set_weights(model.get_weights())
    inputs = drawn(exported, folder.name)
    return Oracle(inputs, in_chunks(exported, inputs, twin, twin.reset_state), "rnn")


def made_stateful(folder: Path) -> Oracle:
    """The model that is exported was made with stateful=True for a batch of its own, and was used."""
    make = single(sequences(layers.LSTM))
    model = randomised(make(ROWS), folder.name)
    exported = export(model, folder)
    inputs = drawn(exported, folder.name)
    return Oracle(inputs, in_chunks(exported, inputs, model, model.get_layer("rnn").reset_state), "rnn")


def stack(batch: int | None) -> Any:
    x = keras.Input((None, 3), batch_size=batch, name="x")
    y = layers.LSTM(4, return_sequences=True, stateful=bool(batch), name="lower")(x)
    y = layers.Dense(5, activation="relu")(layers.LayerNormalization()(y))
    y = layers.GRU(3, return_sequences=True, stateful=bool(batch), name="upper")(y)
    return keras.Model(x, layers.Dense(2, name="y")(y))


def several(batch: int | None) -> Any:
    """Two sequences and a value that is held over a chunk, to a sequence and a last value."""
    words = keras.Input((None,), batch_size=batch, dtype="int32", name="words")
    sound = keras.Input((None, 3), batch_size=batch, name="sound")
    speaker = keras.Input((2,), batch_size=batch, name="speaker")
    read = layers.GRU(3, return_sequences=True, stateful=bool(batch), name="reader")(layers.Embedding(7, 3)(words))
    heard = layers.LSTM(4, return_sequences=True, stateful=bool(batch), name="listener")(sound)
    both = layers.Concatenate()([read, heard])
    last = layers.SimpleRNN(3, stateful=bool(batch), name="summary")(both)
    mood = layers.Dense(2, name="mood")(layers.Concatenate()([last, speaker]))
    return keras.Model(
        {"sound": sound, "words": words, "speaker": speaker}, {"z": mood, "y": layers.Dense(2, name="next")(both)}
    )


def nested(batch: int | None) -> Any:
    """A layer of one name outside and inside of a model in the model."""
    inner = keras.Sequential(
        [
            keras.Input((None, 3), batch_size=batch),
            layers.LSTM(3, return_sequences=True, stateful=bool(batch), name="deep"),
            layers.Dense(3),
        ],
        name="inner",
    )
    x = keras.Input((None, 3), batch_size=batch, name="x")
    return keras.Model(x, layers.GRU(4, return_sequences=True, stateful=bool(batch), name="rnn")(inner(x)))


def spread_over_time(layer: Callable[..., Any], shape: tuple[int, ...]) -> Callable[[Path], Oracle]:
    return partial(
        build,
        single(
            sequences(layers.LSTM),
            shape=shape,
            before=[lambda: layers.TimeDistributed(layer()), lambda: layers.TimeDistributed(layers.Flatten())],
        ),
    )


def of_cudnn(kind: Any, folder: Path) -> Oracle:
    make = single(sequences(kind))
    model = randomised(make(None), folder.name)
    with tempfile.TemporaryDirectory() as scratch:
        path = keras_2.save(model, Path(scratch) / "old.h5", keras_2.to_cudnn)
        keras_2.weights_to_cudnn(path)
        exported = export(path, folder)
    twin = make(ROWS)
    twin.set_weights(model.get_weights())
    inputs = drawn(exported, folder.name)
    return Oracle(inputs, in_chunks(exported, inputs, twin, twin.get_layer("rnn").reset_state), "rnn")


LAST, FIRST = "channels_last", "channels_first"

BUILDS: Final[dict[str, Callable[[Path], Oracle]]] = {
    "simple_rnn": partial(build, single(sequences(layers.SimpleRNN))),
    "simple_rnn_last": partial(build, single(partial(layers.SimpleRNN, 4))),
    "gru": partial(build, single(sequences(layers.GRU))),
    "gru_last": partial(build, single(partial(layers.GRU, 4))),
    "gru_reset_before": partial(build, single(sequences(layers.GRU, reset_after=False))),
    "gru_no_bias": partial(build, single(sequences(layers.GRU, use_bias=False))),
    "lstm": partial(build, single(sequences(layers.LSTM))),
    "lstm_last": partial(build, single(partial(layers.LSTM, 4))),
    "lstm_return_state": partial(build, single(sequences(layers.LSTM, return_state=True))),
    "lstm_no_bias": partial(build, single(sequences(layers.LSTM, use_bias=False))),
    "lstm_relu": partial(build, single(sequences(layers.LSTM, activation="relu"))),
    "lstm_hard_sigmoid": partial(build, single(sequences(layers.LSTM, recurrent_activation="hard_sigmoid"))),
    "lstm_dropout": partial(build, single(sequences(layers.LSTM, dropout=0.3, recurrent_dropout=0.3))),
    "gru_dropout": partial(build, single(sequences(layers.GRU, dropout=0.3, recurrent_dropout=0.3))),
    "lstm_go_backwards": partial(build, single(sequences(layers.LSTM, go_backwards=True))),
    "gru_go_backwards": partial(build, single(sequences(layers.GRU, go_backwards=True))),
    "lstm_unroll": partial(unrolled, layers.LSTM),
    "gru_unroll": partial(unrolled, layers.GRU),
    "lstm_stateful": made_stateful,
    "cudnn_lstm": partial(of_cudnn, layers.LSTM),
    "cudnn_gru": partial(of_cudnn, layers.GRU),
    "conv_lstm_1d": conv(1, LAST),
    "conv_lstm_1d_first": conv(1, FIRST),
    "conv_lstm_2d": conv(2, LAST),
    "conv_lstm_2d_first": conv(2, FIRST),
    "conv_lstm_3d": conv(3, LAST),
    "conv_lstm_3d_first": conv(3, FIRST),
    "conv_lstm_2d_last": conv(2, LAST, return_sequences=False),
    "conv_lstm_2d_valid": conv(2, LAST, padding="valid"),
    "conv_lstm_2d_strides": conv(2, LAST, strides=2),
    "conv_lstm_2d_strides_first": conv(2, FIRST, strides=(2, 1)),
    "conv_lstm_2d_dilation": conv(2, LAST, dilation_rate=2, padding="valid"),
    "conv_lstm_2d_dilation_first": conv(2, FIRST, dilation_rate=2),
    "rnn_simple_rnn_cell": partial(build, single(rnn(lambda: layers.SimpleRNNCell(4)))),
    "rnn_gru_cell": partial(build, single(rnn(lambda: layers.GRUCell(4)))),
    "rnn_lstm_cell": partial(build, single(rnn(lambda: layers.LSTMCell(4)))),
    "rnn_stacked_cells": partial(by_hand, partial(stacked, return_sequences=True)),
    "rnn_stacked_cells_last": partial(by_hand, stacked),
    "rnn_custom_cell": partial(build, single(rnn(lambda: LeakyCell(4)))),
    "cell_simple_rnn": lambda folder: of_cell(layers.SimpleRNNCell(4, name="cell"), folder),
    "cell_gru": lambda folder: of_cell(layers.GRUCell(4, name="cell"), folder),
    "cell_gru_reset_before": lambda folder: of_cell(layers.GRUCell(4, reset_after=False, name="cell"), folder),
    "cell_lstm": lambda folder: of_cell(layers.LSTMCell(4, name="cell"), folder),
    "cell_stacked": lambda folder: of_cell(
        layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(4)], name="cell"), folder
    ),
    "cell_custom": lambda folder: of_cell(LeakyCell(4, name="cell"), folder),
    "cell_conv_lstm_2d": lambda folder: of_cell(
        layers.ConvLSTM2D(2, 2, padding="same", name="rnn").cell, folder, shape=(4, 3, 2)
    ),
    "cell_in_a_model": of_step,
    "bidirectional_lstm": partial(build, single(bidirectional(sequences(layers.LSTM, 3)))),
    "bidirectional_gru": partial(build, single(bidirectional(sequences(layers.GRU, 3), merge_mode="mul"))),
    "bidirectional_gru_last": partial(build, single(bidirectional(partial(layers.GRU, 3), merge_mode="sum"))),
    "bidirectional_simple_rnn": partial(build, single(bidirectional(sequences(layers.SimpleRNN, 3)))),
    "time_distributed_dense": spread_over_time(partial(layers.Dense, 2), (3, 2)),
    "time_distributed_conv": spread_over_time(partial(layers.Conv2D, 2, 2), (4, 3, 1)),
    "masking_lstm": masked(sequences(layers.LSTM)),
    "masking_gru": masked(sequences(layers.GRU)),
    "masking_simple_rnn_last": masked(partial(layers.SimpleRNN, 4)),
    "masking_custom_cell": masked(rnn(lambda: LeakyCell(4))),
    "masking_bidirectional": masked(bidirectional(sequences(layers.SimpleRNN, 3)), AT_STARTS),
    "masking_at_starts": masked(sequences(layers.LSTM), AT_STARTS),
    "embedding_mask_zero": partial(
        build,
        single(sequences(layers.GRU), shape=(), before=[lambda: layers.Embedding(7, 3, mask_zero=True)]),
        blank=INSIDE,
    ),
    "stack": partial(build, stack, reset="lower"),
    "several_inputs_and_outputs": partial(build, several, reset="listener"),
    "nested_models": partial(build, nested),
}
