"""The cases of Keras, told without it: it is imported when one is built."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from tests.parity.case import Case, Oracle

HELD: Final = (
    "Keras shows zeros where a chunk starts with masked timesteps; Recurra shows the last output, as one long run does"
)

# By the name of the build in keras_builds.py.
_LAYERS: Final = {
    "simple_rnn": "SimpleRNN",
    "simple_rnn_last": "SimpleRNN, last output only",
    "gru": "GRU",
    "gru_last": "GRU, last output only",
    "gru_reset_before": "GRU, reset_after=False",
    "gru_no_bias": "GRU without bias",
    "gru_dropout": "GRU with dropout and recurrent dropout",
    "gru_go_backwards": "GRU, go_backwards",
    "gru_unroll": "GRU, unroll",
    "lstm": "LSTM",
    "lstm_last": "LSTM, last output only",
    "lstm_return_state": "LSTM, return_state",
    "lstm_no_bias": "LSTM without bias",
    "lstm_relu": "LSTM with relu",
    "lstm_hard_sigmoid": "LSTM with hard_sigmoid",
    "lstm_dropout": "LSTM with dropout and recurrent dropout",
    "lstm_go_backwards": "LSTM, go_backwards",
    "lstm_unroll": "LSTM, unroll",
    "lstm_stateful": "LSTM, made with stateful=True",
    "cudnn_lstm": "CuDNNLSTM in an .h5 of Keras 2",
    "cudnn_gru": "CuDNNGRU in an .h5 of Keras 2",
    "conv_lstm_1d": "ConvLSTM1D",
    "conv_lstm_1d_first": "ConvLSTM1D, channels_first",
    "conv_lstm_2d": "ConvLSTM2D",
    "conv_lstm_2d_first": "ConvLSTM2D, channels_first",
    "conv_lstm_3d": "ConvLSTM3D",
    "conv_lstm_3d_first": "ConvLSTM3D, channels_first",
    "conv_lstm_2d_last": "ConvLSTM2D, last output only",
    "conv_lstm_2d_valid": "ConvLSTM2D, padding valid",
    "conv_lstm_2d_strides": "ConvLSTM2D, strides",
    "conv_lstm_2d_strides_first": "ConvLSTM2D, strides, channels_first",
    "conv_lstm_2d_dilation": "ConvLSTM2D, dilation",
    "conv_lstm_2d_dilation_first": "ConvLSTM2D, dilation, channels_first",
    "rnn_simple_rnn_cell": "RNN of SimpleRNNCell",
    "rnn_gru_cell": "RNN of GRUCell",
    "rnn_lstm_cell": "RNN of LSTMCell",
    "rnn_stacked_cells": "RNN of StackedRNNCells",
    "rnn_stacked_cells_last": "RNN of StackedRNNCells, last output only",
    "rnn_custom_cell": "RNN of a custom cell",
    "cell_simple_rnn": "SimpleRNNCell alone, one timestep",
    "cell_gru": "GRUCell alone, one timestep",
    "cell_gru_reset_before": "GRUCell alone, reset_after=False, one timestep",
    "cell_lstm": "LSTMCell alone, one timestep",
    "cell_stacked": "StackedRNNCells alone, one timestep",
    "cell_custom": "A custom cell alone, one timestep",
    "cell_conv_lstm_2d": "The cell of ConvLSTM2D alone, one timestep",
    "cell_in_a_model": "LSTMCell in a functional model of one timestep",
    "bidirectional_lstm": "Bidirectional LSTM",
    "bidirectional_gru": "Bidirectional GRU, product",
    "bidirectional_gru_last": "Bidirectional GRU, sum, last output only",
    "bidirectional_simple_rnn": "Bidirectional SimpleRNN",
    "time_distributed_dense": "TimeDistributed Dense before an LSTM",
    "time_distributed_conv": "TimeDistributed Conv2D before an LSTM",
    "masking_lstm": "Masking, LSTM",
    "masking_gru": "Masking, GRU",
    "masking_simple_rnn_last": "Masking, SimpleRNN, last output only",
    "masking_custom_cell": "Masking, RNN of a custom cell",
    "masking_bidirectional": "Masking, Bidirectional SimpleRNN",
    "masking_at_starts": "Masking where chunks start, LSTM",
    "embedding_mask_zero": "Embedding with mask_zero, GRU",
    "stack": "LSTM, LayerNormalization, Dense, GRU, Dense",
    "several_inputs_and_outputs": "A functional model of three inputs and two outputs",
    "nested_models": "A model in a model",
}


def _build(name: str, folder: Path) -> Oracle:
    from tests.parity.keras_builds import BUILDS, keras  # noqa: PLC0415

    keras.backend.clear_session()  # so that names made by counting are always the same
    return BUILDS[name](folder)


CASES: Final = [
    Case(f"keras_{name}", layer, "keras", partial(_build, name), HELD if name == "masking_at_starts" else "")
    for name, layer in _LAYERS.items()
]
