"""Keys of cross features with more exposures than one task should hold: they are cut in slices of time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from genrank.pipelines.arrays import single_array
from genrank.pipelines.merge_scan import Int
from genrank.pipelines.messages import KeyCount

HOT_ROWS = 1 << 20
"""Exposures of one key that a task should hold at most."""

HotKeys = dict[str, dict[int, int]]
"""Tag of a key set -> hot key -> slices of time it is cut in."""


def frequent_keys(key_set: str, keys: Int, buckets: int) -> Iterator[KeyCount]:
    """A bucket's keys that may be hot over all buckets."""
    counted = pa.array(keys).value_counts()
    many = counted.filter(pa.array(counted.field("counts").to_numpy() * 8 * buckets >= HOT_ROWS))
    values, counts = (single_array(many.field(name)).to_pylist() for name in ("values", "counts"))
    for key, rows in zip(values, counts, strict=True):
        yield KeyCount(key_set, key, rows)


def hot_keys(counted: Iterable[KeyCount], slots: int) -> HotKeys:
    """Those that are hot, from every bucket's frequent keys; a key is cut in `slots` slices at most."""
    total: dict[tuple[str, int], int] = {}
    for count in counted:
        total[count.key_set, count.key] = total.get((count.key_set, count.key), 0) + count.rows
    found: HotKeys = {}
    for (key_set, key), rows in total.items():
        if rows > HOT_ROWS:
            found.setdefault(key_set, {})[key] = min(slots, -(-rows // HOT_ROWS))
    return found
