"""Checks of configuration dataclasses, in plain Python: encoders run where pydantic is not installed.

A frozen dataclass that derives from `Checked` has its fields' types and bounds checked when it is made, from Python and from `--set`
alike:

    @dataclass(frozen=True)
    class TowerConfig(Checked):
        hidden: tuple[Positive, ...] = (64,)
        dropout: Share = 0.0
"""

from __future__ import annotations

import dataclasses
import math
import types
from dataclasses import dataclass
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A field of a configuration that can't be: which, and the remedy."""

    def __init__(self, config: str, field: str, value: object, remedy: str) -> None:
        self.field, self.remedy = field, remedy
        super().__init__(f"{config}({field}={value!r}): {remedy}")


@dataclass(frozen=True)
class Bounds:
    """Of a number: `low` at least, below `below` (or at most `high`)."""

    low: float = -math.inf
    high: float = math.inf
    below: float = math.inf

    def remedy(self, value: float) -> str | None:
        """What to give in `value`'s place; None where it is in bounds."""
        if self.low <= value <= self.high and (value < self.below or self.below == math.inf) and math.isfinite(value):
            return None
        if self.below < math.inf:
            return f"give a number from {self.low:g} to below {self.below:g}"
        if self.high < math.inf:
            return f"give a number from {self.low:g} to {self.high:g}"
        return "must not be negative" if self.low == 0 else f"must be at least {self.low:g}"


@dataclass(frozen=True)
class Above:
    """Of a number: more than `low`."""

    low: float

    def remedy(self, value: float) -> str | None:
        """What to give in `value`'s place; None where it is in bounds."""
        return None if self.low < value < math.inf else f"must be more than {self.low:g}"


Positive = Annotated[int, Bounds(low=1)]
"""A number of things of which there is at least one."""
Count = Annotated[int, Bounds(low=0)]
"""A number of things, or 0 for none."""
Share = Annotated[float, Bounds(low=0, below=1)]
"""A share that is dropped."""
Scale = Annotated[float, Above(0)]
"""A positive factor."""


class Checked:
    """Base of configuration dataclasses.

    Raises:
        ConfigError: when one is made with a value of another type or out of bounds. Subclasses add what several fields must agree on in
            `__post_init__`, and call this one's first.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if remedy := mistake(hints[field.name], value):
                raise ConfigError(type(self).__name__, field.name, value, remedy)

    def refuse(self, field: str, remedy: str) -> ConfigError:
        """The error of a field that doesn't fit the others."""
        return ConfigError(type(self).__name__, field, getattr(self, field), remedy)


def mistake(hint: object, value: object) -> str | None:
    """What is wrong with a value of an annotated type, as the remedy; None where nothing is."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, *bounds = arguments
        found = mistake(kind, value)
        for bound in bounds:
            if found is None and isinstance(bound, Bounds | Above) and isinstance(value, int | float):
                found = bound.remedy(value)
        return found
    if origin is Literal:
        same = any(type(value) is type(choice) and value == choice for choice in arguments)
        return None if same else f"give one of {', '.join(map(repr, arguments))}"
    if origin in (Union, types.UnionType):
        return _of_alternatives(arguments, value)
    if origin is tuple:
        if not isinstance(value, tuple):
            return "give a tuple, such as (128, 64)"
        return next((f"of each: {found}" for each in value if (found := mistake(arguments[0], each))), None)
    if hint is float:
        return None if isinstance(value, int | float) and not isinstance(value, bool) else "give a number"
    if hint is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else "give a whole number"
    if isinstance(hint, type) and not isinstance(value, hint):
        return "give nothing" if hint is type(None) else f"give a {hint.__name__}"
    return None


def _of_alternatives(kinds: tuple[object, ...], value: object) -> str | None:
    """The mistake of the alternative that the value is of the type of, or all of them."""
    found = [mistake(kind, value) for kind in kinds]
    if None in found:
        return None
    bounds = [_bound(kind) for kind in kinds]
    of_type = [
        remedy
        for kind, bound, remedy in zip(kinds, bounds, found, strict=True)
        if bound is not None and mistake(get_args(kind)[0], value) is None and remedy
    ]
    known = [remedy for kind, remedy in zip(kinds, found, strict=True) if remedy and kind is not type(None)]
    return of_type[0] if of_type else ", or ".join(known)


def _bound(kind: object) -> object | None:
    return get_args(kind)[1] if get_origin(kind) is Annotated else None
