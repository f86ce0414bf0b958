"""How ids become rows of an embedding table.

Every logical table starts with two special rows: `MISSING_ROW` (the value was null) and `UNKNOWN_ROW` (a value outside the
vocabulary, or not yet admitted). Samples store ids as int64: an integer column as it is, a string column by `hash_strings`.
Which row an id maps to is decided when samples are read, so changing a vocabulary never rebuilds samples.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa

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
