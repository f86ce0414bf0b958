"""How ids become rows of an embedding table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from genrank.schemas.base import Declaration, Duration


class Enumerated(Declaration):
    """A closed list, in the order of its rows; anything else is unknown."""

    kind: Literal["enumerated"] = "enumerated"
    values: tuple[str, ...] | tuple[int, ...] = Field(min_length=1)

    @property
    def size(self) -> int:
        return len(self.values)


class Identity(Declaration):
    """Integers 0 .. size-1, each its own row; anything else is unknown."""

    kind: Literal["identity"] = "identity"
    size: int = Field(gt=0)


class Hashed(Declaration):
    """Any id, hashed into `size` buckets: no admission, collisions accepted."""

    kind: Literal["hashed"] = "hashed"
    size: int = Field(gt=0)


class Dynamic(Declaration):
    """Ids get rows as training meets them."""

    kind: Literal["dynamic"] = "dynamic"
    capacity: int = Field(gt=0)
    """Rows at most; beyond it `evict` makes room."""
    admit_after: int = Field(default=1, ge=1)
    """An id gets a row of its own at this many sightings; until then it reads the unknown row."""
    evict: Literal["age", "frequency"] = "age"
    max_age: Duration | None = None
    """Rows unseen for longer are evicted even when there is room."""

    @property
    def size(self) -> int:
        return self.capacity


Vocabulary = Annotated[Enumerated | Identity | Hashed | Dynamic, Field(discriminator="kind")]
