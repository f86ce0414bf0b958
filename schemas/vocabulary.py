"""How ids become rows of an embedding table.

Every logical table starts with two special rows: `MISSING_ROW` (the value was null) and `UNKNOWN_ROW` (a value outside the
vocabulary, or not yet admitted). Samples store ids as int64: an integer column as it is, a string column by `hash_strings`.
Which row an id maps to is decided when samples are read, so changing a vocabulary never rebuilds samples.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field

from genrank.schemas.base import Declaration, Duration

MISSING_ROW = 0
UNKNOWN_ROW = 1
SPECIAL_ROWS = 2
MISSING_ID = -(2**63)
"""The stored id of a null: int64's minimum."""


def hash_string(text: str) -> int:
    """64-bit signed blake2b of the text's UTF-8; never `MISSING_ID`. Stable across machines, engines and versions."""
    value = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
    return value if value != MISSING_ID else value + 1


def hash_strings(strings: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Stored ids (int64, no nulls) of a string array: `hash_string` of each, `MISSING_ID` for null."""
    encoded = strings.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], pa.string()).dictionary_encode()
    table = pa.array([hash_string(text) for text in encoded.dictionary.to_pylist()], pa.int64())
    return table.take(encoded.indices).fill_null(MISSING_ID)


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
