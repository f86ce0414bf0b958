"""Which columns of numbers do better in Parquet without a dictionary: zstd finds the bytes that hardly change, wherever there are such."""

from __future__ import annotations

import pyarrow as pa

from genrank.pipelines.arrays import single_array
from genrank.schemas.ids import MISSING_ID

PLAIN, SPLIT, DELTAS = "PLAIN", "BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED"
"""Spark's reader, and others, refuse the second: it is for files that genrank alone reads."""
NEAR = 1 << 32
"""Integers within less have four bytes or more that are all alike; hashes and what else lies further apart does better in a dictionary."""


def without_dictionary(values: pa.Array | pa.ChunkedArray) -> bool:
    """Whether a column is written fastest, and smallest, as the numbers themselves: of floats and of integers that lie near each other. A
    dictionary of the latter takes twice the time (a table that misses the cache at each value) and as much room."""
    if pa.types.is_floating(values.type):
        return True
    if not pa.types.is_integer(values.type):
        return False
    width: int = values.type.bit_width
    if width <= 32:
        return width == 32
    numbers = single_array(values).drop_null().to_numpy(zero_copy_only=False)
    if len(numbers) and int(numbers.min()) == MISSING_ID:
        numbers = numbers[numbers != MISSING_ID]
    return not len(numbers) or int(numbers.max()) - int(numbers.min()) < NEAR


def leaves(path: str, values: pa.Array) -> list[tuple[str, pa.Array]]:
    """(path in a Parquet file, values) of every column that an Arrow column becomes there."""
    if pa.types.is_struct(values.type):
        fields = [(f"{path}.{field.name}", values.field(i)) for i, field in enumerate(values.type)]
        return [leaf for name, own in fields for leaf in leaves(name, own)]
    if pa.types.is_list(values.type):
        return leaves(f"{path}.list.element", values.flatten())
    return [(path, values)]
