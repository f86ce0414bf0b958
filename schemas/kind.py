"""Open families of declarations: features, transforms and vocabularies, each member known by its tag `kind`.

A family is a class that derives from `Kind` directly, a member one that derives from the family and is registered:

    @register_feature_kind
    class Ratio(Feature):
        kind: Literal["ratio"] = "ratio"

A field annotated with the family (`features: tuple[Feature, ...]`) takes every member known when it is validated, as an instance or as
a mapping with its tag, so a schema in JSON or YAML may name kinds that another package registers. A tag that nobody registered is looked
for once in the installed packages' entry points of group `genrank.kinds`: modules that register kinds when they are imported. That is how
a process that only reads a schema as text (a Spark executor, a trainer that resumes a run) comes to know them.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar, Union, cast

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from genrank.schemas.base import Declaration

ENTRY_POINTS = "genrank.kinds"
"""Group of entry points whose modules register kinds and operations."""

Member = TypeVar("Member", bound="Kind")


class Kind(Declaration):
    """A declaration of an open family; see the module."""

    if TYPE_CHECKING:
        kind: str  # each member's own field: Literal["tag"] = "tag"

    members_by_tag: ClassVar[dict[str, type[Kind]]]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        if cls._is_family():
            cls.members_by_tag = {}

    @classmethod
    def _is_family(cls) -> bool:
        # A direct subclass of Kind, by name: pydantic asks while Kind itself is made.
        return any((base.__module__, base.__name__) == (__name__, "Kind") for base in cls.__bases__)

    @classmethod
    def kinds(cls) -> Mapping[str, type[Self]]:
        """The family's registered members by tag, in the order they were registered."""
        return cast(Mapping[str, type[Self]], cls.members_by_tag)

    @classmethod
    def register(cls, member: type[Member]) -> type[Member]:
        """Make a member known to its family; a decorator.

        Raises:
            TypeError: it doesn't derive from the family, or has no field `kind` with its tag as the default.
            ValueError: another class has the tag.
        """
        field = member.model_fields.get("kind")
        if not issubclass(member, cls) or field is None or not isinstance(field.default, str):
            raise TypeError(
                f'{member.__name__} must derive from {cls.__name__} and declare kind: Literal["tag"] = "tag"'
            )
        known = cls.members_by_tag.get(field.default)
        # The same file run again, such as a schema that is loaded twice, registers anew what it defines.
        if known and (known.__module__, known.__qualname__) != (member.__module__, member.__qualname__):
            raise ValueError(
                f"kind {field.default!r} is {known.__module__}.{known.__qualname__}'s; give {member.__name__} another"
            )
        cls.members_by_tag[field.default] = member
        return member

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if not cls._is_family():
            return handler(source)
        return core_schema.no_info_plain_validator_function(cls._member)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        if not cls._is_family():
            return handler(schema)
        return handler(_union(tuple(cls.members_by_tag.values())).core_schema)

    @classmethod
    def _member(cls, value: object) -> Kind:
        """An instance of a registered member, or a mapping made into one. ValidationError as of a tagged union."""
        tag = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
        if isinstance(tag, str) and tag not in cls.members_by_tag:
            load_entry_points()
        if isinstance(value, Kind) and type(value) is cls.members_by_tag.get(value.kind):
            return value
        return _union(tuple(cls.members_by_tag.values())).validate_python(value)


@cache
def _union(members: tuple[type[Kind], ...]) -> TypeAdapter[Kind]:
    """The members as pydantic's own tagged union, whose errors and JSON Schema a family shares."""
    return TypeAdapter(Annotated[Union[members], Field(discriminator="kind")])  # type: ignore[arg-type]  # noqa: UP007


@cache
def load_entry_points() -> None:
    """Import what installed packages name in group `genrank.kinds`, once a process."""
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        entry_point.load()


class RegisteredName:
    """A pydantic annotation: a string that must be one of a registry's names; errors and JSON Schema are those of a `Literal`."""

    def __init__(self, names: Callable[[], tuple[str, ...]]) -> None:
        self.names = names

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A string among the names of the moment."""
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """As of a `Literal` of the names."""
        return handler(core_schema.literal_schema(list(self.names())))

    def _checked(self, value: object) -> str:
        if value not in self.names():
            load_entry_points()
        names = self.names()
        # The members' own validator says what is wrong, in the words of a Literal.
        return str(_literal(names).validate_python(value))


@cache
def _literal(names: tuple[str, ...]) -> SchemaValidator:
    return SchemaValidator(core_schema.literal_schema(list(names)))
