"""Flags: those that several commands share, and those that are derived from a configuration's fields.

    @app.command(cls=ConfigCommand)
    @takes(TrainConfig)
    def train(config: TrainConfig) -> None: ...

gives `train` a flag a field, with the field's type, default, help and panel, and `--config FILE`. What a flag says overrides the file.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, TypeVar, Union, get_args, get_origin

import typer
from typer.core import TyperCommand

from genrank.schemas.configuration import Config, Flag, Panel, fields_of, flag_of, from_values, shown_as
from genrank.schemas.errors import UserError
from genrank.schemas.schema import Schema

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

SchemaFlag = Annotated[
    str,
    typer.Option(
        "--schema", metavar="FILE.py:NAME", help="The feature schema; also a .yaml or .json file.", show_default=False
    ),
]
DataFlag = Annotated[
    str, typer.Option("--data", metavar="DIR", help="Root folder of the sources, or a URI.", show_default=False)
]
OutFlag = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Root folder of what is built.", show_default=False)
]
AsOfFlag = Annotated[
    str | None,
    typer.Option("--as-of", metavar="TIME", help="Labels as known then (ISO 8601). Default: the newest day's end."),
]
SamplesFlag = Annotated[
    Path, typer.Option("--samples", metavar="DIR", help="The --out folder of `genrank build`.", show_default=False)
]
ConfigFlag = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML or JSON with this command's fields, or a run's own config.json; flags override it.",
        show_default=False,
    ),
]

Rest = ParamSpec("Rest")
Returned = TypeVar("Returned")


class ConfigCommand(TyperCommand):
    """A command whose required flags may stand in the `--config` file instead."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse with nothing required where a file may hold it; what is then missing, the configuration says."""
        from_file = any(arg == "--config" or arg.startswith("--config=") for arg in args)
        required = [param for param in self.params if param.required]
        for param in required:
            param.required = not from_file
        try:
            return super().parse_args(ctx, args)
        finally:
            for param in required:
                param.required = True


def takes(
    config: type[Config], **defaults: object
) -> Callable[[Callable[Concatenate[Config, Rest], Returned]], Callable[..., Returned]]:
    """Turn a function of a configuration, and of flags of its own, into one that typer reads: a flag a field, and `--config`.

    Args:
        config: its fields become the flags.
        defaults: other defaults than the fields' own, for the command alone.
    """
    fields = fields_of(config)

    def decorate(function: Callable[Concatenate[Config, Rest], Returned]) -> Callable[..., Returned]:
        def command(**given: Any) -> Returned:
            context, file = given.pop("context"), given.pop("config_file")
            values = {name: given.pop(name) for name in fields}
            chosen = {
                name: _value(name, fields[name], value)
                for name, value in values.items()
                if context.get_parameter_source(name).name == "COMMANDLINE"
            }
            return function(from_values(config, chosen, file, defaults), **given)  # type: ignore[call-arg]

        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        parameters = [
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *(_parameter(name, field, defaults) for name, field in fields.items()),
            *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
            inspect.Parameter("config_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFlag),
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def _parameter(name: str, field: FieldInfo, defaults: Mapping[str, object]) -> inspect.Parameter:
    shown = shown_as(field)
    panel = next((one.title for one in field.metadata if isinstance(one, Panel)), None)
    flag, default = flag_of(name, field), defaults.get(name, field.get_default(call_default_factory=True))
    kind = _kind(field.annotation, shown)
    if kind is bool and default is True:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    required = field.is_required()
    if default in ((), {}):
        default = None
    elif shown.is_text and isinstance(default, tuple):
        default = ",".join(map(str, default))
    option = typer.Option(
        flag,
        metavar=shown.metavar,
        help=" ".join((field.description or "").split()),
        rich_help_panel=panel,
        show_default=not required,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else default,
        annotation=Annotated[kind if required or default is not None else kind | None, option],
    )


def _kind(annotation: Any, shown: Flag) -> Any:
    """The type that typer parses a flag's text into."""
    if shown.is_text or annotation is Schema:
        return str
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        # A folder or a URI is text; one kind and None is that kind.
        return _kind(members[0], shown) if len(members) == 1 else str
    return list[str] if origin is tuple or _is_mapping(origin) else annotation


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _value(name: str, field: FieldInfo, value: Any) -> object:
    """What typer parsed, as the field takes it."""
    if _is_mapping(get_origin(field.annotation)):
        return dict(_assignment(flag_of(name, field), text) for text in value)
    return tuple(value) if isinstance(value, list) else value


def _assignment(flag: str, text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise UserError(f"{flag} {text}: write FIELD=VALUE, such as layers=4")
    return field, value
