"""What a user says about a model: `<model>/model.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from recurra.models import toml
from recurra.models.refusal import ModelRefused

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
        control: what it tells the graph of the sequence: "start", "end" or "corrid"; see recurra.models.control.
        values: of a start or end control, those that stand for no and yes.

    """

    batch_axis: int | None = None
    time_axis: int | bool | None = None
    constant: float | list[Any] | None = None
    context: int = 0
    chunk_sizes: tuple[int, ...] = ()
    control: str | None = None
    values: tuple[float, float] = (0, 1)


@dataclass(frozen=True)
class ModelConfig:
    """A whole model.toml.

    Attributes:
        session_ttl: seconds after its last operation that a session is kept.
        max_batch: sessions in one run at most.
        durability: what an acknowledgement means.
        provider: that runs it, one of PROVIDERS; None: the server's.
        tf32: on a GPU, products may round their inputs to 10 bits.
        retry_by_id: a request of Triton's protocol that repeats the last one's id and input is a retry of it.
        sha256, start_sha256: hex digests that model.onnx and start.onnx must have, None for any.

    """

    states: tuple[StateConfig, ...] = ()
    inputs: Mapping[str, TensorConfig] = field(default_factory=dict)
    outputs: Mapping[str, TensorConfig] = field(default_factory=dict)
    session_ttl: int = DAY_SECONDS
    max_batch: int = 256
    durability: str = "committed"
    provider: str | None = None
    tf32: bool = False
    retry_by_id: bool = False
    sha256: str | None = None
    start_sha256: str | None = None


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
        table = toml.Table(tomllib.loads(text), "")
    except tomllib.TOMLDecodeError as error:
        raise ModelRefused(f"model.toml is not valid TOML: {error}") from error
    config = ModelConfig(
        states=tuple(_state(item) for item in table.take("states", toml.tables, ())),
        inputs={name: _input(item) for name, item in table.take("inputs", toml.named, {}).items()},
        outputs={name: _output(item) for name, item in table.take("outputs", toml.named, {}).items()},
        session_ttl=table.take("session_ttl", toml.positive, DAY_SECONDS),
        max_batch=table.take("max_batch", toml.positive, 256),
        durability=table.take("durability", toml.durability, "committed"),
        provider=table.take("provider", toml.provider, None),
        tf32=table.take("tf32", toml.flag, False),
        retry_by_id=table.take("retry_by_id", toml.flag, False),
        sha256=table.take("sha256", toml.digest, None),
        start_sha256=table.take("start_sha256", toml.digest, None),
    )
    table.close()
    names = [state.name for state in config.states]
    if len(set(names)) < len(names):
        raise ModelRefused(f"model.toml: two [[states]] have one name: {', '.join(names)}")
    return config


def _state(table: toml.Table) -> StateConfig:
    state = StateConfig(
        name=table.need("name"),
        input=table.need("input"),
        output=table.need("output"),
        layer=table.take("layer", toml.text, None),
        batch_axis=table.take("batch_axis", toml.axis, None),
        fresh=table.take("fresh", toml.fresh, 0.0),
    )
    table.close()
    return state


def _input(table: toml.Table) -> TensorConfig:
    control = table.take("control", toml.control, None)
    tensor = TensorConfig(
        batch_axis=table.take("batch_axis", toml.axis, None),
        time_axis=table.take("time_axis", toml.axis_or_false, False if control else None),
        control=control,
        values=table.take("values", toml.two, (0, 1)),
        constant=table.take("constant", toml.constant, None),
        context=table.take("context", toml.positive, 0),
        chunk_sizes=table.take("chunk_sizes", toml.sizes, ()),
    )
    table.close()
    return tensor


def _output(table: toml.Table) -> TensorConfig:
    tensor = TensorConfig(
        batch_axis=table.take("batch_axis", toml.axis, None),
        time_axis=table.take("time_axis", toml.axis_or_false, None),
    )
    table.close()
    return tensor
