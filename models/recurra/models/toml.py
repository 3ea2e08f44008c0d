"""A TOML table read key by key, and what its values may be. A bad or unknown key is told by its name.

The checks take a value and where it stands, and raise ValueError with what the value must be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from recurra.models.provider import PROVIDERS
from recurra.models.refusal import ModelRefused

T = TypeVar("T")
D = TypeVar("D")

CONTROLS: Final = ("start", "end", "corrid")
DURABILITIES: Final = ("committed", "checkpointed", "replicated")


class Table:
    """A TOML table whose every key must be taken by somebody."""

    def __init__(self, values: dict[str, Any], place: str) -> None:
        self._values = values
        self._place = place
        self._known: list[str] = []

    def take(self, key: str, check: Callable[[Any, str], T], default: D) -> T | D:
        """The value of `key`, checked. Raises ModelRefused naming the key."""
        self._known.append(key)
        if key not in self._values:
            return default
        where = f"{self._place}.{key}" if self._place else key
        try:
            return check(self._values[key], where)
        except ValueError as error:
            raise ModelRefused(f"model.toml: {where} = {self._values[key]!r}: {error}") from None

    def need(self, key: str) -> str:
        """A text that must be there. Raises ModelRefused naming the key."""
        if key not in self._values:
            raise ModelRefused(f"model.toml: {self._place} has no '{key}'")
        return self.take(key, text, "")

    def close(self) -> None:
        """Raises ModelRefused for a key that nobody took."""
        unknown = sorted(self._values.keys() - set(self._known))
        if unknown:
            place = f"[{self._place}] " if self._place else ""
            raise ModelRefused(
                f"model.toml: {place}has no setting '{unknown[0]}'; there are {', '.join(sorted(self._known))}"
            )


def tables(value: Any, where: str) -> tuple[Table, ...]:
    """An array of tables."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("must be tables, written [[states]]")
    return tuple(Table(item, f"{where}[{index}]") for index, item in enumerate(value))


def named(value: Any, where: str) -> dict[str, Table]:
    """Tables by name."""
    if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
        raise ValueError(f"must be tables, written [{where}.NAME]")
    return {name: Table(item, f"{where}.{name}") for name, item in value.items()}


def text(value: Any, _: str) -> str:
    """A text that says something."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text that is not empty")
    return value


def whole(value: Any, least: int) -> int:
    """A whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"must be a whole number of at least {least}")
    return value


def axis(value: Any, _: str) -> int:
    """An axis, counted from 0."""
    return whole(value, 0)


def axis_or_false(value: Any, _: str) -> int | bool:
    """An axis, or false for none."""
    return value if value is False else whole(value, 0)


def positive(value: Any, _: str) -> int:
    """A count of at least 1."""
    return whole(value, 1)


def sizes(value: Any, _: str) -> tuple[int, ...]:
    """Counts, sorted."""
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of sizes")
    return tuple(sorted({whole(item, 1) for item in value}))


def fresh(value: Any, _: str) -> float | str:
    """A number, or the name of a file."""
    if isinstance(value, str) and value.endswith(".npy"):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError("must be a number, or the name of a .npy file next to model.toml")


def constant(value: Any, _: str) -> float | list[Any]:
    """A number, or a list of them."""
    if isinstance(value, int | float | list):
        return value
    raise ValueError("must be a number or a list of numbers")


def control(value: Any, _: str) -> str:
    """A control that there is."""
    if value not in CONTROLS:
        raise ValueError(f"must be one of {', '.join(CONTROLS)}")
    return str(value)


def two(value: Any, _: str) -> tuple[float, float]:
    """Two numbers."""
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(each, int | float) for each in value):  # noqa: PLR2004
        raise ValueError("must be two numbers, for no and yes")
    return value[0], value[1]


def durability(value: Any, _: str) -> str:
    """A level that there is."""
    if value not in DURABILITIES:
        raise ValueError(f"must be one of {', '.join(DURABILITIES)}")
    return str(value)


def provider(value: Any, _: str) -> str:
    """A provider that there is."""
    if value not in PROVIDERS:
        raise ValueError(f"must be one of {', '.join(PROVIDERS)}")
    return str(value)


def flag(value: Any, _: str) -> bool:
    """Yes or no."""
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004
    return value


def digest(value: Any, _: str) -> str:
    """A sha256 in hexadecimal digits."""
    if not isinstance(value, str) or len(value) != 64 or set(value.lower()) - set("0123456789abcdef"):  # noqa: PLR2004
        raise ValueError("must be 64 hexadecimal digits")
    return value.lower()
