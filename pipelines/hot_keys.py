"""Keys of cross features with more exposures than one task should hold: they are cut in slices of time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from genrank.pipelines.arrays import single_array
from genrank.pipelines.merge_scan import Int
from genrank.pipelines.messages import KeyCount

HOT_ROWS = 1 << 20
"""Exposures of one key that a task should hold at most."""
PART, COUNTED = 8, 256
"""Buckets in which a key has less than an eighth (1 / `PART`) of an even share of `HOT_ROWS` don't count it; where it has more, so many of them are counted."""

HotKeys = dict[str, dict[int, int]]
"""Tag of a key set -> hot key -> slices of time it is cut in."""


def counted_of(buckets: int) -> int:
    """Every how many-th exposure of a bucket is counted, of so many buckets: a key that may be hot has `COUNTED` of them or more, which
    tells its number to a twentieth or so."""
    return max(1, HOT_ROWS // (PART * buckets * COUNTED))


def frequent_keys(key_set: str, keys: Int, buckets: int) -> Iterator[KeyCount]:
    """A bucket's keys that may be hot over all buckets, by the keys of every `counted_of`-th exposure."""
    counted, each = pa.array(keys).value_counts(), counted_of(buckets)
    many = counted.filter(pa.array(counted.field("counts").to_numpy() * each * PART * buckets >= HOT_ROWS))
    values, counts = (single_array(many.field(name)).to_pylist() for name in ("values", "counts"))
    for key, rows in zip(values, counts, strict=True):
        yield KeyCount(key_set, key, rows * each)


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
