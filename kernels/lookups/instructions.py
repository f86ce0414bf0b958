"""What the kernels of lookups read: instructions, known when a model is made, and places, which come with each batch. All int64.

Pointers are addresses: columns of a batch are as many tensors as there are features, and a kernel takes no list of tensors.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Source(IntEnum):
    """Where an instruction's values come from."""

    IDS = 0
    """A column of int64 ids."""
    NUMBERS = 1
    """A column of float32 numbers, NaN where missing."""
    CROSSED = 2
    """One id from several columns: `tokenization.hashing.combine_ids`."""
    PART = 3
    """A part of the row's own local time: `tokenization.feature_kinds.times.time_part`."""
    SINCE_COLUMN = 4
    """Seconds from a column of moments to the row's own time."""
    SINCE_EVENT = 5
    """Seconds from the event before it in its sample."""
    SINCE_VISIBLE = 6
    """Seconds from the newest event that a candidate sees."""


class Encoding(IntEnum):
    """What becomes of a value: a row of a table, or (from `LOG` on) a number."""

    PASS = 0
    """The id as it is."""
    ENUMERATED = 1
    IDENTITY = 2
    HASHED = 3
    BUCKETS = 4
    LOG = 5
    """sign(x) log(1 + |x|)."""
    DENSE = 6
    """(x - shift) * scale."""


PARTS = ("hour", "weekday", "hour_of_week", "day_of_month", "month")
"""Parts of a time, by their number."""


class RowInstruction(NamedTuple):
    """A feature's way from a sample's column to rows or numbers."""

    source: int
    encoding: int
    group: int
    """Token group, a row of the groups' places."""
    argument: int
    """Number of operands (CROSSED) or of the part (PART)."""
    operand: int
    """First operand (CROSSED)."""
    size: int
    """Of the vocabulary, or how many edges there are."""
    first: int
    """First of its ids (ENUMERATED) or edges (BUCKETS) among all."""
    start: int
    """First physical row of its table."""


class RowPlace(NamedTuple):
    """Where one finds and writes in a batch."""

    values: int
    """Address of the column; 0 where there is none."""
    length: int
    """Rows."""
    out: int
    """First place among the rows, or the numbers, that are found."""


class GroupPlace(NamedTuple):
    """A token group of a batch."""

    ts: int
    """Address of [N] int64."""
    offsets: int
    """Address of [B+1] int64."""


class Columns(IntEnum):
    """What the columns of a feature are."""

    SINGLE = 0
    """A row of a table."""
    SUM = 1
    MEAN = 2
    """Of a list's rows."""
    NUMBER = 3
    """A number and its missing flag."""
    BLOCK = 4
    """Columns that are computed elsewhere."""


class VectorInstruction(NamedTuple):
    """A feature's columns in the matrix of its token group."""

    kind: int
    table: int
    """Merged table."""
    group: int
    column: int
    """First column."""
    dim: int
    """Columns; of a number 2."""
    width: int
    """Columns of the matrix."""


class VectorPlace(NamedTuple):
    """Where they come from in a batch."""

    rows: int
    """Of the group."""
    entries: int
    """Rows of the table that are read, each of which gets a gradient; of a block the rows."""
    source: int
    """First among the rows (a table) or numbers that were found; or the address of a block."""
    stride: int
    """Of a block."""
    offsets: int
    """Address of [N+1] int64, of a list."""
    out: int
    """First element of the matrix among all matrices' elements."""
    inverse: int
    """First place among the norms, one a row."""
    grad: int
    """First element among the gradients (of the table, or of the blocks)."""
    moments: int
    """Address of a number's (mean, deviation)."""
