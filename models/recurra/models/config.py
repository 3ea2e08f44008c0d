"""What a user says about a model: `<model>/model.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from recurra.models.refusal import ModelRefused

T = TypeVar("T")
D = TypeVar("D")

DURABILITIES: Final = ("committed",)
DAY_SECONDS: Final = 86_400


@dataclass(frozen=True)
class StateConfig:
    """A state pair that the user names.

    Attributes:
        fresh: a number that fills the fresh state, or the name of a .npy file next to model.toml.

    """

    name: str
    input: str
    output: str
    layer: str | None = None
    batch_axis: int | None = None
    fresh: float | str = 0.0


@dataclass(frozen=True)
class TensorConfig:
    """What the user says about one graph input or output; the defaults leave it to detection.

    Attributes:
        batch_axis: the graph's batch axis.
        time_axis: the graph's time axis; False where it has none.
        constant: fed at every call in place of a caller's tensor.
        context: samples of the previous chunk that are put in front of this one.
        chunk_sizes: how many timesteps a chunk may have.

    """

    batch_axis: int | None = None
    time_axis: int | bool | None = None
    constant: float | list[Any] | None = None
    context: int = 0
    chunk_sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """A whole model.toml.

    Attributes:
        session_ttl: seconds after its last operation that a session is kept.
        max_batch: sessions in one run at most.
        durability: what an acknowledgement means.
        sha256: hex digest that model.onnx must have, None for any.

    """

    states: tuple[StateConfig, ...] = ()
    inputs: Mapping[str, TensorConfig] = field(default_factory=dict)
    outputs: Mapping[str, TensorConfig] = field(default_factory=dict)
    session_ttl: int = DAY_SECONDS
    max_batch: int = 256
    durability: str = "committed"
    sha256: str | None = None


def read(path: Path) -> ModelConfig:
    """The configuration in `path`, the defaults if there is no such file. Raises ModelRefused naming a bad key."""
    if not path.exists():
        return ModelConfig()
    try:
        return parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelRefused(f"model.toml cannot be read: {error}") from error


def parse(text: str) -> ModelConfig:
    """The configuration in `text`. Raises ModelRefused naming a bad key."""
    try:
        table = _Table(tomllib.loads(text), "")
    except tomllib.TOMLDecodeError as error:
        raise ModelRefused(f"model.toml is not valid TOML: {error}") from error
    config = ModelConfig(
        states=tuple(_state(item) for item in table.take("states", _tables, ())),
        inputs={name: _input(item) for name, item in table.take("inputs", _named, {}).items()},
        outputs={name: _output(item) for name, item in table.take("outputs", _named, {}).items()},
        session_ttl=table.take("session_ttl", _positive, DAY_SECONDS),
        max_batch=table.take("max_batch", _positive, 256),
        durability=table.take("durability", _durability, "committed"),
        sha256=table.take("sha256", _digest, None),
    )
    table.close()
    names = [state.name for state in config.states]
    if len(set(names)) < len(names):
        raise ModelRefused(f"model.toml: two [[states]] have one name: {', '.join(names)}")
    return config


class _Table:
    """A TOML table whose every key must be taken by somebody."""

    def __init__(self, values: dict[str, Any], place: str) -> None:
        self._values = values
        self._place = place
        self._known: list[str] = []

    def take(self, key: str, check: Callable[[Any, str], T], default: D) -> T | D:
        self._known.append(key)
        if key not in self._values:
            return default
        where = f"{self._place}.{key}" if self._place else key
        try:
            return check(self._values[key], where)
        except ValueError as error:
            raise ModelRefused(f"model.toml: {where} = {self._values[key]!r}: {error}") from None

    def need(self, key: str) -> str:
        if key not in self._values:
            raise ModelRefused(f"model.toml: {self._place} has no '{key}'")
        return self.take(key, _text, "")

    def close(self) -> None:
        unknown = sorted(self._values.keys() - set(self._known))
        if unknown:
            place = f"[{self._place}] " if self._place else ""
            raise ModelRefused(
                f"model.toml: {place}has no setting '{unknown[0]}'; there are {', '.join(sorted(self._known))}"
            )


def _state(table: _Table) -> StateConfig:
    state = StateConfig(
        name=table.need("name"),
        input=table.need("input"),
        output=table.need("output"),
        layer=table.take("layer", _text, None),
        batch_axis=table.take("batch_axis", _axis, None),
        fresh=table.take("fresh", _fresh, 0.0),
    )
    table.close()
    return state


def _input(table: _Table) -> TensorConfig:
    tensor = TensorConfig(
        batch_axis=table.take("batch_axis", _axis, None),
        time_axis=table.take("time_axis", _axis_or_false, None),
        constant=table.take("constant", _constant, None),
        context=table.take("context", _positive, 0),
        chunk_sizes=table.take("chunk_sizes", _sizes, ()),
    )
    table.close()
    return tensor


def _output(table: _Table) -> TensorConfig:
    tensor = TensorConfig(
        batch_axis=table.take("batch_axis", _axis, None),
        time_axis=table.take("time_axis", _axis_or_false, None),
    )
    table.close()
    return tensor


def _tables(value: Any, where: str) -> tuple[_Table, ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("must be tables, written [[states]]")
    return tuple(_Table(item, f"{where}[{index}]") for index, item in enumerate(value))


def _named(value: Any, where: str) -> dict[str, _Table]:
    if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
        raise ValueError(f"must be tables, written [{where}.NAME]")
    return {name: _Table(item, f"{where}.{name}") for name, item in value.items()}


def _text(value: Any, _: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text that is not empty")
    return value


def _whole(value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"must be a whole number of at least {least}")
    return value


def _axis(value: Any, _: str) -> int:
    return _whole(value, 0)


def _axis_or_false(value: Any, _: str) -> int | bool:
    return value if value is False else _whole(value, 0)


def _positive(value: Any, _: str) -> int:
    return _whole(value, 1)


def _sizes(value: Any, _: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of sizes")
    return tuple(sorted({_whole(item, 1) for item in value}))


def _fresh(value: Any, _: str) -> float | str:
    if isinstance(value, str) and value.endswith(".npy"):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError("must be a number, or the name of a .npy file next to model.toml")


def _constant(value: Any, _: str) -> float | list[Any]:
    if isinstance(value, int | float | list):
        return value
    raise ValueError("must be a number or a list of numbers")


def _durability(value: Any, _: str) -> str:
    if value not in DURABILITIES:
        raise ValueError(f"must be one of {', '.join(DURABILITIES)}")
    return str(value)


def _digest(value: Any, _: str) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value.lower()) - set("0123456789abcdef"):  # noqa: PLR2004
        raise ValueError("must be 64 hexadecimal digits")
    return value.lower()
