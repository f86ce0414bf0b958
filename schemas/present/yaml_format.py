"""YAML as schema files are written and read: version 1.2, short lists and mappings on one line, what is shared written once.

What is read follows YAML 1.2's core schema, in which `on`, `yes`, `12:30` and `2026-01-01` are strings; what is written quotes whatever
either version of YAML would take for something else than a string, so that tools that read 1.1 read the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString

_STRING = "tag:yaml.org,2002:str"
_RESOLVERS = [VersionedResolver(version=version) for version in ((1, 1), (1, 2))]


_LONGEST = 100
"""Characters of a list or mapping of scalars that is written on one line; a longer one takes a line an item."""


class Shared(dict[str, Any]):
    """A mapping that is written once, under its name as the anchor, wherever the same object stands again."""

    def __init__(self, data: dict[str, Any], name: str) -> None:
        super().__init__(data)
        self.name = name


class _Constructor(SafeConstructor):
    """Reads what looks like a date as the string it is: YAML 1.2's core schema has no dates."""


class _Representer(RoundTripRepresenter):
    """Writes 1e-05 as 1.0e-05, which readers of YAML 1.1 take for a number, too."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_scalar)


def _float(representer: RoundTripRepresenter, value: float) -> ScalarNode:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return representer.represent_scalar("tag:yaml.org,2002:float", text)


_Representer.add_representer(float, _float)


def yaml_reader() -> YAML:
    """A reader of plain data: no tags, no key twice."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml


def yaml_writer() -> YAML:
    """A writer of `styled` data: two spaces a level, no line broken."""
    yaml = YAML(typ="rt")
    yaml.Representer = _Representer
    yaml.width = 2**20
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def styled(data: object) -> Any:
    """Plain dicts, lists and scalars in the form they are written in: short collections of scalars on one line, shared ones anchored."""
    return _styled(data, {})


def _styled(data: object, shared: dict[int, CommentedMap]) -> Any:
    if isinstance(data, Shared):
        if id(data) not in shared:
            shared[id(data)] = _mapping(data, shared)
            shared[id(data)].yaml_set_anchor(data.name)
        return shared[id(data)]
    if isinstance(data, dict):
        return _mapping(data, shared)
    if isinstance(data, list):
        items = CommentedSeq(_styled(item, shared) for item in data)
        if _fits_one_line(data):
            items.fa.set_flow_style()
        return items
    return _text(data) if isinstance(data, str) else data


def _mapping(data: dict[str, Any], shared: dict[int, CommentedMap]) -> CommentedMap:
    items = CommentedMap((_text(key), _styled(value, shared)) for key, value in data.items())
    if _fits_one_line(scalar for item in data.items() for scalar in item):
        items.fa.set_flow_style()
    return items


def _fits_one_line(scalars: Iterable[object]) -> bool:
    length = 0
    for scalar in scalars:
        if isinstance(scalar, dict | list):
            return False
        length += len(str(scalar)) + len(", ")
    return length <= _LONGEST


def _text(text: str) -> object:
    # Line breaks that are written as they are would be read as spaces; in double quotes they are escaped.
    if any(character in text for character in "\n\r\x85\u2028\u2029"):
        return DoubleQuotedScalarString(text)
    # A question mark or colon would begin a mapping's key or value in a list on one line.
    if text.startswith(("?", ":")) or any(r.resolve(ScalarNode, text, (True, False)) != _STRING for r in _RESOLVERS):
        return SingleQuotedScalarString(text)
    return text


def in_one_line(error: YAMLError) -> str:
    """`line 2: key 'name' stands twice`."""
    mark = getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    problem = getattr(error, "problem", None) or "not text"
    if isinstance(error, DuplicateKeyError) and (key := re.match(r'found duplicate key "(.*?)" with', problem)):
        problem = f"key {key[1]!r} stands twice"
    return f"{line}{problem}"
