"""Every file type against every declared one: each value is exactly itself, or its row is marked; nothing else comes out, and nothing fails."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.schemas.base import ARROW_TYPES
from genrank.schemas.conversion import FIRST_MS, LAST_MS, convert, readable_as
from genrank.schemas.ids import MISSING_ID

EPOCH = datetime(1970, 1, 1)
WHOLE = st.sampled_from([0, 1, -1, 127, 2**15, 2**24 + 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**62, 2**63 - 1, -(2**63)])
FLOATS = st.sampled_from([0.0, -0.5, 1e-9, 3.0, 1e38, 3.5e38, 1e300, math.inf, -math.inf, math.nan]) | st.floats()
TICKS = st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(-(10**10), 10**13)


def fitting(type_: pa.DataType, value: Any) -> bool:
    try:
        pa.array([value], type_)
    except (pa.ArrowInvalid, OverflowError, TypeError, ValueError):
        return False
    return True


def decimals(type_: pa.DataType) -> st.SearchStrategy[Decimal]:
    most = 10 ** min(type_.precision, 25) - 1
    return st.integers(-most, most).map(lambda n: Decimal(n).scaleb(-type_.scale))


SCALARS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    **dict.fromkeys((pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()), WHOLE),
    pa.uint64(): WHOLE | st.just(2**64 - 1),
    pa.bool_(): st.booleans(),
    pa.float32(): FLOATS,
    pa.float64(): FLOATS,
    **{
        t: decimals(t) for t in (pa.decimal128(38, 0), pa.decimal128(20, 3), pa.decimal256(60, 0), pa.decimal256(40, 5))
    },
    **{t: decimals(t) for t in (pa.decimal32(9, 2), pa.decimal64(18, 0))},
    **{t: st.text(max_size=4) for t in (pa.string(), pa.large_string(), pa.string_view())},
    **{pa.timestamp(unit, zone): TICKS for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Europe/Berlin")},
    pa.null(): st.none(),
}


def layouts(element: pa.DataType) -> list[pa.DataType]:
    kinds = [pa.list_(element), pa.large_list(element), pa.list_(element, 2)]
    if not pa.types.is_null(element):
        kinds += [pa.list_view(element), pa.large_list_view(element)]
    return kinds


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.Array, str]:
    """A column of some file, and a declared type that it is readable as."""
    element = draw(st.sampled_from(list(SCALARS)))
    values = st.none() | SCALARS[element].filter(lambda value: fitting(element, value))
    type_ = element
    if draw(st.booleans()):
        type_ = draw(st.sampled_from(layouts(element)))
        size = 2 if pa.types.is_fixed_size_list(type_) else None
        values = st.none() | st.lists(values, min_size=size or 0, max_size=size or 3)
    rows = draw(st.lists(values, max_size=6))
    array = pa.array(rows, type_)
    if type_ in (pa.string(), pa.int64(), pa.large_string()) and draw(st.booleans()):
        array = array.dictionary_encode()
    if len(rows) and draw(st.booleans()):
        array = array.slice(draw(st.integers(0, len(rows) - 1)))  # Offsets of its own.
    declared = [name for name in ARROW_TYPES if readable_as(array.type, name)]
    return array, draw(st.sampled_from(declared)) if declared else ""


@settings(max_examples=400, deadline=None)
@given(columns())
def test_each_value_is_itself_or_its_row_is_marked(column: tuple[pa.Array, str]) -> None:
    array, declared = column
    if not declared:
        return
    converted = convert(array, declared)
    assert converted.values.type == ARROW_TYPES[declared] and len(converted.values) == len(array)
    marked = np.zeros(len(array), np.bool_)
    for misfit in converted.misfits:
        assert misfit.rows.any()
        marked |= misfit.rows
    for before, after, wrong in zip(plain(array), plain(converted.values), marked.tolist(), strict=True):
        if isinstance(before, list) and isinstance(after, list):
            fits = len(before) == len(after) and all(
                same(a, b, declared[5:-1]) for a, b in zip(before, after, strict=True)
            )
        else:
            fits = same(before, after, declared)
        assert wrong or fits, (array.type, declared, before, after)
        assert not (wrong and before is None)


def plain(array: pa.Array) -> list[Any]:
    """Values as Python has them; times as the fraction of ms since 1970 that they are."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_timestamp(array.type):
        per = {"s": Fraction(1000), "ms": Fraction(1), "us": Fraction(1, 1000), "ns": Fraction(1, 10**6)}[
            array.type.unit
        ]
        return [None if v is None else v * per for v in array.cast(pa.int64()).to_pylist()]
    if pa.types.is_nested(array.type):
        return [plain(row.values) if row.is_valid else None for row in array]
    return array.to_pylist()


def same(before: Any, after: Any, declared: str) -> bool:
    """Whether a value is exactly what it was, as far as the declared type goes."""
    if before is None or after is None:
        return before is after
    if declared == "timestamp":
        return math.floor(before) == after and FIRST_MS <= after <= LAST_MS
    if declared in ("float32", "float64"):
        if isinstance(before, float | Decimal) and (isinstance(before, float) or before % 1):
            kind = np.float32 if declared == "float32" else np.float64
            with np.errstate(over="ignore"):
                nearest = kind(float(before))
            return bool(nearest == after or (np.isnan(nearest) and np.isnan(after))) and not math.isinf(after)
        return Fraction(before) == Fraction(after)
    if declared == "int64" and before == MISSING_ID:
        return False
    return bool(before == after)


def test_halves_are_floats() -> None:
    """Parquet has 16-bit floats, which hypothesis' values need not fit."""
    halves = pa.array(np.array([0.5, np.nan, np.inf, 65504], np.float16))
    for declared in ("float32", "float64"):
        converted = convert(halves, declared)
        assert [misfit.rows.tolist() for misfit in converted.misfits] == [[False, False, True, False]]
        assert converted.values[0].as_py() == 0.5 and converted.values[3].as_py() == 65504


@pytest.mark.parametrize(
    "type_", [pa.binary(), pa.date32(), pa.duration("s"), pa.time64("us"), pa.struct([("a", pa.int64())])]
)
def test_types_without_a_meaning_here_are_no_column(type_: pa.DataType) -> None:
    assert not any(readable_as(type_, declared) for declared in ARROW_TYPES)


def test_the_first_and_last_moment() -> None:
    ends = pa.array(
        [EPOCH + timedelta(milliseconds=FIRST_MS), EPOCH + timedelta(milliseconds=LAST_MS)], pa.timestamp("us")
    )
    assert convert(ends, "timestamp").values.cast(pa.int64()).to_pylist() == [FIRST_MS, LAST_MS]
