"""Keras' files: .keras and .h5, those of Keras 2 among them."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import h5py

from recurra.models.export import legacy
from recurra.models.export.backend import Layer, keras
from recurra.models.refusal import ModelRefused


def load(path: Path) -> Layer:
    """The keras.Model in `path`.

    Raises ModelRefused for what is no file of Keras, and for layers that are not known here.
    """
    if not path.exists():
        raise ModelRefused(f"there is no file '{path}'")
    with tempfile.TemporaryDirectory() as scratch:
        if path.is_file() and h5py.is_hdf5(path):
            return _loaded(legacy.h5(path, Path(scratch)), path.name)
        if path.is_file() and zipfile.is_zipfile(path):
            return _loaded(legacy.keras(path, Path(scratch)), path.name)
    raise ModelRefused(
        f"'{path}' is no .keras or .h5 file; save the model with model.save('NAME.keras'), in Keras 2 with "
        "model.save('NAME.h5')"
    )


def _loaded(path: Path, name: str) -> Layer:
    try:
        with keras.saving.custom_object_scope(legacy.OBJECTS):
            return keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises many kinds, and those of the custom layers
        first: BaseException = error
        while first.__context__:  # the outer ones repeat the whole configuration
            first = first.__context__
        reason = " ".join(str(first).split())[:300]
        raise ModelRefused(
            f"Keras does not load {name}: {reason}. Custom layers and cells must be registered by a module that is "
            "imported first (@keras.saving.register_keras_serializable() on the class, `--import MODULE` on the "
            "command line); or load the model in Python, and give it to recurra.models.export.keras.export"
        ) from error
