"""A schema as text: JSON in full, YAML as a person would write it, and the JSON Schema by which editors check both.

JSON says everything, defaults included, so that a stored sample keeps its meaning when a default changes. YAML leaves
defaults out and writes a shared table once (`&items`, then `*items`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from genrank.schemas.errors import SchemaError
from genrank.schemas.pydantic_errors import readable
from genrank.schemas.schema import Schema
from genrank.schemas.table import Table


def to_json(schema: Schema) -> str:
    """Everything the schema says, indented."""
    return schema.model_dump_json(indent=2)


def from_json(text: str | bytes, *, where: str = "schema") -> Schema:
    """The schema of `to_json`, or one written by hand.

    Raises:
        SchemaError: not JSON, or not a schema; every mistake, under the heading `where`.
    """
    try:
        data = json.loads(text, object_pairs_hook=_no_key_twice)
    except ValueError as error:
        raise SchemaError(where, [f"not JSON: {error}"]) from None
    return from_data(data, where=where)


def to_yaml(schema: Schema) -> str:
    """The schema without what is default."""
    tables: dict[Table, dict[str, Any]] = {}
    return yaml.dump(
        _plain(schema, tables), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True
    )


def from_yaml(text: str | bytes, *, where: str = "schema") -> Schema:
    """The schema of `to_yaml`, or one written by hand. YAML 1.2: `on`, `yes` and `12:30` are plain strings.

    Raises:
        SchemaError: not YAML, or not a schema; every mistake, under the heading `where`.
    """
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SchemaError(where, [f"not YAML: {line}{problem}"]) from None
    return from_data(data, where=where)


def from_data(data: object, *, where: str = "schema") -> Schema:
    """The schema of plain dicts and lists, as JSON or YAML hold them. Raises SchemaError with every mistake."""
    try:
        return Schema.model_validate(data)
    except ValidationError as error:
        raise SchemaError(where, readable(error, data)) from None
    except SchemaError as error:
        raise SchemaError(where, error.mistakes) from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of schema files, with every field's description, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "genrank schema",
        **{key: value for key, value in Schema.model_json_schema().items() if key != "title"},
    }


# ---------------------------------------------------------------------- plain data


def _plain(value: object, tables: dict[Table, dict[str, Any]]) -> Any:
    """Dicts, lists and scalars without defaults; one dict for equal tables, so that YAML can refer to it."""
    if isinstance(value, Table):
        if value not in tables:
            tables[value] = _fields(value, tables)
        return tables[value]
    if isinstance(value, BaseModel):
        return _fields(value, tables)
    if isinstance(value, Mapping):
        return {key: _plain(item, tables) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item, tables) for item in value]
    return value


def _fields(declaration: BaseModel, tables: dict[Table, dict[str, Any]]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, field in type(declaration).model_fields.items():
        value = getattr(declaration, name)
        tag = name == "kind" and len(get_args(field.annotation)) == 1
        if tag or field.is_required() or value != field.get_default(call_default_factory=True):
            said[name] = _plain(value, tables)
    first = [name for name in ("kind", "name") if name in said]
    return {name: said[name] for name in dict.fromkeys([*first, *said])}


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"key {key!r} stands twice in one object")
        data[key] = value
    return data


# ---------------------------------------------------------------------- YAML 1.2

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, where PyYAML's own reads 1.1: a label's key `on` would become True, an offset +08:00 480."""

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than a string; names anchors after tables."""

    yaml_implicit_resolvers = {key: list(found) for key, found in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012

    def generate_anchor(self, node: yaml.Node) -> str:
        fields = {key.value: value.value for key, value in node.value}
        return str(fields["name"])

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


for _tag, _pattern, _first in (
    ("bool", _BOOL, "tTfF"),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", re.compile("<<"), "<"),
):
    for _resolver in (_Loader, _Dumper):
        _resolver.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern.pattern})$"), list(_first)
        )


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)))


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)))


def _str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes these line breaks as they are, and its reader folds them into spaces; in double quotes it escapes them.
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _str)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
