"""The bricks every declaration is made of: immutable models, column types, durations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StringConstraints

ColumnType = Literal[
    "bool",
    "int32",
    "int64",
    "float32",
    "float64",
    "string",
    "timestamp",
    "list<int64>",
    "list<float32>",
    "list<string>",
]

ARROW_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "timestamp": pa.timestamp("ms", tz="UTC"),
    "list<int64>": pa.list_(pa.int64()),
    "list<float32>": pa.list_(pa.float32()),
    "list<string>": pa.list_(pa.string()),
}
assert set(ARROW_TYPES) == set(get_args(ColumnType))

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
DAY_MS = _UNITS_MS["d"]


USER = "user"
CANDIDATES = "candidates"
"""Names of the two token groups every schema has; sequences name themselves."""


class Declaration(BaseModel):
    """Immutable, closed to unknown fields, comparable and hashable by value."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    def replace(self, **changes: object) -> Self:
        """A copy with some fields changed, validated as a whole.

        `schema.replace(candidates=schema.candidates.replace(features=(*schema.candidates.features, mine)))` adds a feature.
        """
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """`replace`: pydantic's own would skip validation and keep the old fingerprint."""
        return self.replace(**(update or {}))


def parse_duration(text: str) -> int:
    """Milliseconds of a duration such as `"250ms"`, `"30s"`, `"15m"`, `"6h"` or `"90d"`.

    Raises:
        ValueError: not a whole number followed by one of ms, s, m, h, d.
    """
    match = re.fullmatch(r"(\d+)\s*(ms|s|m|h|d)", text.strip())
    if not match:
        raise ValueError(f'{text!r} is not a duration; write a whole number and a unit: "30s", "15m", "6h" or "90d"')
    return int(match[1]) * _UNITS_MS[match[2]]


def format_duration(ms: int) -> str:
    """The shortest text that `parse_duration` reads back as `ms`."""
    for unit in ("d", "h", "m", "s"):
        if ms and ms % _UNITS_MS[unit] == 0:
            return f"{ms // _UNITS_MS[unit]}{unit}"
    return f"{ms}ms"


def _duration(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return format_duration(value)
    return value


def _normal_duration(value: str) -> str:
    return format_duration(parse_duration(value))


Duration = Annotated[str, BeforeValidator(_duration), AfterValidator(_normal_duration)]
"""A duration in text, normalised so that `"24h"` equals `"1d"`; `parse_duration` gives milliseconds."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""An identifier: it becomes a column, a metric or a file name."""
