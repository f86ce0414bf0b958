"""Typed configurations: one frozen dataclass says what a command takes, and the rest is derived from it.

    @dataclass(frozen=True)                                 # pydantic's
    class TrainConfig(Configuration):
        lr: Annotated[float, NOT_NEGATIVE, OPTIMIZERS] = 2e-3
        '''AdamW, dense parameters.'''

A field's type, bounds and default validate what is given, in Python as on the command line; its docstring is the flag's help; `Flag` and
`Panel` say how the flag is written. `from_values` takes what flags and a `--config` file give. Whatever is wrong is a `ConfigError`: every
mistake in one line that names the flag and the remedy.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails
from ruamel.yaml.error import YAMLError

from genrank.schemas.errors import UserError
from genrank.schemas.expression import nearest
from genrank.schemas.load import load_schema
from genrank.schemas.present.serialization import from_json
from genrank.schemas.present.yaml_format import in_one_line, yaml_reader
from genrank.schemas.schema import Schema

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic.functional_validators import ModelWrapValidatorHandler

AT_LEAST_0 = Field(ge=0)
AT_LEAST_1 = Field(ge=1)
NOT_NEGATIVE = Field(ge=0, allow_inf_nan=False)
SHARE = Field(ge=0, le=1, allow_inf_nan=False)


@dataclasses.dataclass(frozen=True)
class Flag:
    """How the command line writes a field, where its name and type don't say."""

    name: str = ""
    """Default: `--` and the field's name."""
    metavar: str | None = None
    is_text: bool = False
    """One word of text, which the field's validator reads."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """The panel of the help page that a field's flag stands in."""

    title: str


@dataclasses.dataclass(frozen=True)
class Changeable:
    """An interrupted run may be resumed with another value of this field."""


CHANGEABLE = Changeable()


class ConfigError(UserError):
    """A configuration that doesn't hold: every mistake."""

    def __init__(self, mistakes: Sequence[tuple[str, str]]) -> None:
        """Take (field or "", message) of each."""
        self.mistakes = tuple(mistakes)
        lines = [message for _, message in self.mistakes]
        many = f"{len(lines)} mistakes:\n  " if len(lines) > 1 else ""
        super().__init__(many + "\n  ".join(lines))


@dataclass(frozen=True, config=ConfigDict(use_attribute_docstrings=True, extra="forbid"))
class Configuration:
    """The base of configurations."""

    @model_validator(mode="wrap")
    @classmethod
    def _errors_name_flags(cls, values: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise ConfigError([_mistake(cls, e) for e in error.errors(include_url=False)]) from None

    def as_json(self) -> dict[str, object]:
        """Everything but the schema, which has a file of its own."""
        values = {name: getattr(self, name) for name in fields_of(type(self)) if name != "schema"}
        return json.loads(json.dumps(values, default=str))  # type: ignore[no-any-return]


Config = TypeVar("Config", bound=Configuration)


def fields_of(config: type[Configuration]) -> dict[str, FieldInfo]:
    """A configuration's fields in order, with description, type, default and metadata."""
    return config.__pydantic_fields__  # type: ignore[attr-defined,no-any-return]


def shown_as(field: FieldInfo) -> Flag:
    """How a field's flag is written: the outermost `Flag` of its type."""
    return next((one for one in reversed(field.metadata) if isinstance(one, Flag)), Flag())


def flag_of(name: str, field: FieldInfo) -> str:
    """A field's flag, such as `--token-budget`."""
    return shown_as(field).name or f"--{name.replace('_', '-')}"


def changeable_fields(config: type[Configuration]) -> frozenset[str]:
    """Names of the fields marked `CHANGEABLE`."""
    return frozenset(name for name, field in fields_of(config).items() if CHANGEABLE in field.metadata)


# ---------------------------------------------------------------------- types of fields


def parse_dates(text: str, flag: str = "--dates", *, one: bool = False) -> list[str]:
    """`2026-01-01:2026-01-03` or one day (`one`: nothing else), as a list of days, each YYYY-MM-DD.

    Raises:
        UserError: the text is neither.
    """
    try:
        return [_one_day(text)] if one else list(_days(text))
    except ValueError as error:
        raise UserError(f"{flag} {text!r} {error}") from None


def _days(value: object) -> tuple[str, ...]:
    """Days of `FROM:TO`, of one day, or of a sequence of days, which YAML reads as dates."""
    if isinstance(value, str):
        first, _, last = value.partition(":")
        begin, end = _day(first), _day(last or first)
        if end < begin:
            raise ValueError("ends before it begins; write FROM:TO with the earlier day first")
        return tuple((begin + timedelta(days=i)).isoformat() for i in range((end - begin).days + 1))
    if isinstance(value, date):
        return (value.isoformat(),)
    if isinstance(value, Sequence):
        return tuple(_day(str(day)).isoformat() for day in value)
    raise ValueError("is neither FROM:TO nor a list of days; write YYYY-MM-DD")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError("is not a day; write YYYY-MM-DD") from None


def _one_day(value: object) -> str:
    return _day(str(value)).isoformat()


def _schema(value: object) -> object:
    return load_schema(str(value)) if isinstance(value, str | Path) else value


Day = Annotated[str, BeforeValidator(_one_day), Flag(metavar="DAY")]
"""YYYY-MM-DD."""
Days = Annotated[tuple[str, ...], BeforeValidator(_days), Flag(metavar="FROM:TO", is_text=True)]
"""Days in order, each YYYY-MM-DD; also given as `FROM:TO`, both ends included, or as one day."""
SchemaField = Annotated[Schema, BeforeValidator(_schema), Flag(metavar="FILE.py:NAME", is_text=True)]
"""A schema; also given as the path that `load_schema` reads."""


def settings_text(value: object) -> object:
    """A mapping of settings with values as `--set FIELD=VALUE` writes them: YAML's `layers: 4` is `"4"`, its `[16]` is `"[16]"`."""
    if not isinstance(value, Mapping):
        return value
    return {str(key): each if isinstance(each, str) else json.dumps(each) for key, each in value.items()}


# ---------------------------------------------------------------------- from flags and files


def from_values(
    config: type[Config],
    flags: Mapping[str, object],
    file: Path | None = None,
    defaults: Mapping[str, object] | None = None,
) -> Config:
    """A configuration of what flags give, else the file, else `defaults`, else the fields' own defaults.

    Mappings (`--set`) are merged key by key.

    Raises:
        ConfigError: a value, or a key of the file, that doesn't hold; those of the file are named with the file.
    """
    from_file = read_config(config, file) if file else {}
    values: dict[str, object] = {**(defaults or {}), **from_file}
    for name, value in flags.items():
        before = values.get(name)
        merged = isinstance(value, Mapping) and isinstance(before, Mapping)
        values[name] = {**before, **value} if merged else value  # type: ignore[dict-item]
    try:
        return config(**values)
    except ConfigError as error:
        if file is None:
            raise
        own = from_file.keys() - flags.keys()
        raise ConfigError(
            [(name, f"--config {file}: {text}" if name in own else text) for name, text in error.mistakes]
        ) from None


def read_config(config: type[Configuration], path: Path) -> dict[str, object]:
    """The values of a YAML or JSON file, whose keys are fields of `config`.

    A run's own config.json has no schema: that is taken from the schema.json beside it.

    Raises:
        UserError: no such file, not YAML or JSON, or a key that is no field.
    """
    where = f"--config {path}"
    try:
        values = yaml_reader().load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{where}: there is no such file; give a .yaml file, or a run's config.json") from None
    except IsADirectoryError:
        raise UserError(f"{where}: is a folder; give a file, such as {path / 'config.json'}") from None
    except YAMLError as error:
        raise UserError(f"{where}: {in_one_line(error)}; is it YAML or JSON?") from None
    except RecursionError:
        raise UserError(f"{where}: is nested too deeply; write a field a line, such as `seed: 1`") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: holds no fields; write one a line, such as `seed: 1`")
    fields = fields_of(config)
    unknown = [str(name) for name in values if name not in fields]
    if len(unknown) > 3:
        listed = ", ".join([*unknown[:3], "..."])
        raise UserError(f"{where}: {len(unknown)} unknown fields ({listed}); there is {', '.join(fields)}")
    if unknown:
        raise ConfigError([(name, f"{where}: {_unknown(config, name)}") for name in unknown])
    beside = path.parent / "schema.json"
    if "schema" in fields and "schema" not in values and beside.is_file():
        values["schema"] = from_json(beside.read_bytes(), where=str(beside))
    return values


def _unknown(config: type[Configuration], name: str) -> str:
    by_flag = {flag_of(field, info).removeprefix("--"): field for field, info in fields_of(config).items()}
    wanted = by_flag.get(name.removeprefix("--").replace("_", "-"))
    return f"unknown field {name!r}" + (
        f"; did you mean {wanted!r}?" if wanted else nearest(name, list(fields_of(config)))
    )


# ---------------------------------------------------------------------- errors


def _mistake(config: type[Configuration], error: ErrorDetails) -> tuple[str, str]:
    fields = fields_of(config)
    name = error["loc"][0] if error["loc"] else ""
    if isinstance(name, int):  # A positional argument's place.
        if name >= len(fields):
            return "", f"{config.__name__}: takes {len(fields)} fields, got a value for one more"
        name = list(fields)[name]
    if name not in fields:
        return name, f"{config.__name__}: {_unknown(config, name)}"
    field = fields[name]
    flag, about = flag_of(name, field), _first_sentence(field.description)
    if error["type"] == "missing":
        return name, f"{flag} is missing{about}"
    key = "".join(f"[{step}]" for step in error["loc"][1:])
    given, colon = _short(error["input"]), "" if error["type"] == "value_error" else ":"
    return name, f"{flag}{key} {given}{colon} {_wrong(error)}{about}"


def _wrong(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}"
        case "finite_number":
            return "must be a finite number"
        case "literal_error":
            allowed = [text.strip("'") for text in context["expected"].replace(" or ", ", ").split(", ")]
            return f"must be one of {', '.join(allowed)}"
        case "int_parsing" | "int_type" | "int_from_float":
            return "must be a whole number"
        case "float_parsing" | "float_type":
            return "must be a number"
        case "value_error":
            return error["msg"].removeprefix("Value error, ")
        case _:
            return error["msg"][:1].lower() + error["msg"][1:]


def _first_sentence(description: str | None) -> str:
    if not description:
        return ""
    sentence = " ".join(description.split()).split(". ")[0].rstrip(".")
    return f" ({sentence[:1].lower()}{sentence[1:]})"


def _short(value: object) -> str:
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
