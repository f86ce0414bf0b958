"""A schema as text: JSON in full, YAML as a person would write it, and the JSON Schema by which editors check both.

JSON says everything, defaults included, so that a stored sample keeps its meaning when a default changes. YAML leaves
defaults out and writes a shared table once (`&items`, then `*items`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml.error import YAMLError

from genrank.schemas.errors import SchemaError
from genrank.schemas.present.yaml_format import Shared, in_one_line, styled, yaml_reader, yaml_writer
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
    except RecursionError:
        raise SchemaError(where, ["not a schema: it is nested too deeply"]) from None
    return from_data(data, where=where)


def to_yaml(schema: Schema) -> str:
    """The schema without what is default."""
    text = io.StringIO()
    yaml_writer().dump(styled(_plain(schema, {})), text)
    return text.getvalue()


def from_yaml(text: str | bytes, *, where: str = "schema") -> Schema:
    """The schema of `to_yaml`, or one written by hand. YAML 1.2: `on`, `yes` and `12:30` are plain strings.

    Raises:
        SchemaError: not YAML, or not a schema; every mistake, under the heading `where`.
    """
    try:
        data = yaml_reader().load(text)
    except YAMLError as error:
        raise SchemaError(where, [f"not YAML: {in_one_line(error)}"]) from None
    except RecursionError:
        raise SchemaError(where, ["not a schema: it is nested too deeply"]) from None
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
            tables[value] = Shared(_fields(value, tables), name=value.name)
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
