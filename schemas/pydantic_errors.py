"""pydantic's errors in plain words: one line a mistake, naming the field and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from genrank.schemas.base import Declaration
from genrank.schemas.expression import nearest


def readable(error: ValidationError, data: object = None) -> list[str]:
    """One line per error: `candidates.features 'price': unknown field 'colum'; did you mean 'column'?`.

    Args:
        data: what was validated, so that list elements are called by name instead of number.
    """
    title = "" if data is not None else f"{error.title}: "
    return list(dict.fromkeys(f"{title}{_line(e, data, error.title)}" for e in error.errors(include_url=False)))


def _line(error: ErrorDetails, data: object, title: str) -> str:
    at, field = _place(error["loc"], data)
    message = _message(error, field, title)
    if error["type"] in ("extra_forbidden", "missing"):
        return f"{at}: {message}" if at else message
    return f"{' '.join(filter(None, (at, field)))}: {message}" if at or field else message


def _message(error: ErrorDetails, field: str, title: str) -> str:
    context, given = error.get("ctx", {}), error.get("input")
    match error["type"]:
        case "extra_forbidden":
            fields = _fields(error, title)
            if len(error["loc"]) > 1 or _close(field, sorted(fields)):
                return f"unknown field {field!r}{nearest(field, fields)}"
            return f"unknown field {field!r}; there is {', '.join(sorted(fields - _EVERYWHERE))}"
        case "missing":
            return f"field {field!r} is missing"
        case "literal_error":
            allowed = [text.strip("'") for text in context["expected"].replace(" or ", ", ").split(", ")]
            return f"{given!r} is none of {', '.join(allowed)}{_close(str(given), allowed)}"
        case "union_tag_invalid":
            allowed = [text.strip("'") for text in context["expected_tags"].split(", ")]
            return f"kind {context['tag']!r} is none of {', '.join(allowed)}{_close(context['tag'], allowed)}"
        case "union_tag_not_found":
            return "field 'kind' is missing: it says which declaration this is"
        case "string_pattern_mismatch" if context["pattern"].startswith("^[A-Za-z_]"):
            return f"{given!r} is not a name; use letters, digits and _, not starting with a digit"
        case "string_pattern_mismatch":
            return f'{given!r} is not of the form "+08:00" or "Europe/Berlin"'
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"expected a declaration with named fields, got {_short(given)}"
        case "too_short":
            return "needs at least one"
        case "greater_than":
            return f"{given!r} must be greater than {context['gt']}"
        case "greater_than_equal":
            return f"{given!r} must be at least {context['ge']}"
        case "less_than_equal":
            return f"{given!r} must be at most {context['le']}"
        case "finite_number":
            return f"{given!r} is not a finite number"
        case "value_error":
            return error["msg"].removeprefix("Value error, ")
        case _:
            return f"{error['msg'][:1].lower()}{error['msg'][1:]}, got {_short(given)}"


def _place(loc: tuple[int | str, ...], data: object) -> tuple[str, str]:
    """(`candidates.features 'price' transform`, field) of a location; union tags, which the data lacks, are dropped."""
    words: list[str] = []
    field = ""
    for step in loc:
        if isinstance(data, list | tuple) and isinstance(step, int) and step < len(data):
            data = data[step]
            name = data.get("name") or data.get("source") if isinstance(data, Mapping) else getattr(data, "name", None)
            words, field = [*words, field], repr(name) if name else f"[{step}]"
        elif isinstance(step, int):
            words, field = [*words, field], f"[{step}]"
        elif (isinstance(data, Mapping) and step not in data and step in (data.get("kind"), *_UNION_MEMBERS)) or (
            data is None and step in (*_kinds(), *_UNION_MEMBERS)
        ):
            continue
        else:
            words, field = [*words, field], step
            data = data.get(step) if isinstance(data, Mapping) else getattr(data, step, None)
    return ".".join(filter(None, words)).replace(".'", " '").replace("'.", "' ").replace(".[", "["), field


def _fields(error: ErrorDetails, title: str) -> set[str]:
    """Fields of the declarations that the error can be about: of the one validated (`title`), where it lies in that itself."""
    kinds = _kinds()
    tags = [step for step in error["loc"][:-1] if isinstance(step, str) and step in kinds]
    owners = kinds[tags[-1]] if tags else list(_declarations(Declaration))
    if len(error["loc"]) == 1:
        owners = [owner for owner in owners if owner.__name__ == title] or owners
    return {name for owner in owners for name in owner.model_fields}


def _declarations(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for declaration in base.__subclasses__():
        yield declaration
        yield from _declarations(declaration)


def _kinds() -> dict[str, list[type[BaseModel]]]:
    """Declarations by their tag: those imported by now, which what was validated has needed."""
    found: dict[str, list[type[BaseModel]]] = {}
    for declaration in _declarations(Declaration):
        kind = declaration.model_fields.get("kind")
        if kind is not None and len(tags := get_args(kind.annotation)) == 1:
            found.setdefault(tags[0], []).append(declaration)
    return found


_EVERYWHERE = {"kind", "description", "owner"}
"""Fields that nobody looks for in a list of them."""
_UNION_MEMBERS = ("tuple[str, ...]", "tuple[int, ...]")
"""How pydantic calls the members of unions without a tag."""


def _close(given: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(given, allowed, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
