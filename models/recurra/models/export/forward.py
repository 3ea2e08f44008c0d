"""What a PyTorch module's forward takes, as a user tells it, and the names of what goes in and comes out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from recurra.models.export import example
from recurra.models.export.example import Example
from recurra.models.refusal import ModelRefused

NEXT: Final = "_next"  # a state's new value is called so
_NO_DEFAULT: Final = inspect.Parameter.empty


class Forward:
    """The arguments of a forward.

    Attributes:
        examples: the tensors among them, in order, a tuple's parts one by one.
        states: the names of those that are states.

    """

    def __init__(self, module: nn.Module, inputs: Mapping[str, str], states: Mapping[str, str]) -> None:
        """Raises ModelRefused if what is told is too much or too little, or cannot be read."""
        self._defaults = _defaults(module)
        told = {**inputs, **states}
        _check_told(self._defaults, told)
        self._parts = {name: example.parse(name, told[name]) for name in self._defaults if name in told}
        self._device = next((weight.device for weight in module.parameters()), torch.device("cpu"))
        self.examples: list[Example] = [each for part in self._parts.values() for each in part]
        self.states = [each.name for name in states for each in self._parts[name]]

    def arguments(self, *, larger: int = 0) -> tuple[Any, ...]:
        """Arguments to call it with; the sizes that may be any are small, and can be made `larger`."""
        sizes = {word: size + larger for word, size in example.sizes(self.examples).items()}
        values: list[Any] = []
        waiting: list[Any] = []  # arguments in front of the last one told, left at their defaults
        for name, default in self._defaults.items():
            if name not in self._parts:
                waiting.append(default)
                continue
            tensors = tuple(torch.from_numpy(each.array(sizes)).to(self._device) for each in self._parts[name])
            values += [*waiting, tensors[0] if self._parts[name][0].name == name else tensors]
            waiting = []
        return tuple(values)

    def outputs(self, given: Sequence[torch.Tensor]) -> list[str]:
        """The names of what came out: y or output_0, ..., then the states' new values.

        Raises ModelRefused if the last ones are not of the states' shapes.
        """
        data = len(given) - len(self.states)
        shapes = {
            each.name: tuple(value.shape) for each, value in zip(self.examples, flat(self.arguments()), strict=True)
        }
        wanted = [shapes[name] for name in self.states]
        if data < 0 or wanted != [tuple(value.shape) for value in given[data:]]:
            raise ModelRefused(
                f"forward gives tensors of shapes {', '.join(str(tuple(value.shape)) for value in given)}; the last "
                f"must be the new {', '.join(f'{name} {shapes[name]}' for name in self.states)}, in this order"
            )
        names = ["y"] if data == 1 and "y" not in shapes else [f"output_{index}" for index in range(data)]
        return names + [name + NEXT for name in self.states]


def flat(value: object) -> Iterator[torch.Tensor]:
    """The tensors in tuples, lists and dicts, as the exporter orders them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from flat(each)


def _check_told(defaults: Mapping[str, Any], told: Mapping[str, str]) -> None:
    missing = [name for name, default in defaults.items() if default is _NO_DEFAULT and name not in told]
    if not told or missing or not told.keys() <= defaults.keys():
        name = next(iter(missing or defaults), "x")
        raise ModelRefused(
            f"forward takes {', '.join(defaults) or 'nothing by position'}, and {', '.join(told) or 'nothing'} was "
            f'told; tell each as --input "{name}={example.HOW}", where a word is a size that may be any, or as the '
            f'attribute example_inputs = {{"{name}": "{example.HOW}"}} of the module'
        )


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Forward's arguments with their defaults; the exporter leaves none out that a script has."""
    if isinstance(module, torch.jit.ScriptModule):
        return {each.name: _NO_DEFAULT for each in module.forward.schema.arguments[1:]}
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    return {each.name: each.default for each in parameters if each.kind in plain}
