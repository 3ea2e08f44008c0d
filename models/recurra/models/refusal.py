"""The one exception of this room."""

from __future__ import annotations


class ModelRefused(Exception):
    """A model cannot be served. `str(error)` says what is wrong with it and what to do."""
