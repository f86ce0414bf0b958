"""A file's column as its declared type: each value converts exactly, or its row is marked with what is wrong.

| file | declared | a value that doesn't fit |
|---|---|---|
| integers of any width, bool, decimals of any scale | int32, int64 | outside the type's range, or with a fraction; -2^63, which stands for a missing value |
| integers, decimals without a scale | float32, float64 | one that the float can't hold exactly |
| floats, decimals with a scale | float32, float64 | beyond the type's range; rounded to its nearest value otherwise |
| infinities | float32, float64 | all: a NaN is a missing value, an infinity is no value |
| timestamps of any unit (INT96 read as ms, see `INT96_UNIT`), of any zone | timestamp | outside the years 1 to 9999; cut to ms |
| strings of any layout | string | none |
| lists of any layout: list, large, fixed-size, views | list<...> | one element that doesn't fit |

A column of type null is all nulls, of whatever type is declared; dictionaries are read as their values. Where a file has the declared
type already, no value is copied: integers, floats and times are only looked at.
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genrank.schemas.base import ARROW_TYPES
from genrank.schemas.ids import MISSING_ID

Mask = NDArray[np.bool_]

INT96_UNIT = "ms"
"""What `coerce_int96_timestamp_unit` of Parquet readers must be: as nanoseconds, a time outside 1677 .. 2262 is another time."""
FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999
"""Epoch ms of the years 1 to 9999, which every library can hold: times outside are not used."""
NOT_FINITE = "is infinite"


class Misfit(NamedTuple):
    """Values of one column that can't be converted, all for the same reason."""

    what: str
    """What follows the column's name: `does not fit int32`."""
    rows: Mask


class Converted(NamedTuple):
    """A column of its declared type, null where a value doesn't fit."""

    values: pa.Array
    misfits: tuple[Misfit, ...]


def readable_as(type_: pa.DataType, declared: str) -> bool:
    """Whether values of a file's type can be read as a declared one without changing their meaning."""
    if pa.types.is_dictionary(type_):
        return readable_as(type_.value_type, declared)
    if pa.types.is_null(type_):
        return True
    if declared.startswith("list<"):
        return _is_list(type_) and readable_as(type_.value_type, declared[5:-1])
    if declared == "bool":
        return bool(pa.types.is_boolean(type_))
    if declared in ("int32", "int64"):
        return bool(pa.types.is_integer(type_) or pa.types.is_boolean(type_) or pa.types.is_decimal(type_))
    if declared in ("float32", "float64"):
        return bool(pa.types.is_floating(type_) or pa.types.is_integer(type_) or pa.types.is_decimal(type_))
    if declared == "timestamp":
        return bool(pa.types.is_timestamp(type_))
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def convert(array: pa.Array, declared: str) -> Converted:
    """Values of a type that is `readable_as` the declared one.

    Args:
        array: one column of some rows, as the file has it.
        declared: a column type of the schema.

    Returns:
        `[rows]` of `ARROW_TYPES[declared]`, and the rows that hold a value which doesn't fit: null there.
    """
    if pa.types.is_dictionary(array.type):
        return convert(array.dictionary_decode(), declared)
    if pa.types.is_null(array.type):
        return Converted(pa.nulls(len(array), ARROW_TYPES[declared]), ())
    if declared.startswith("list<"):
        return _lists(array, declared)
    if declared in ("int32", "int64"):
        return _integers(array, declared)
    if declared in ("float32", "float64"):
        return _floats(array, declared)
    if declared == "timestamp":
        return _times(array)
    wanted = ARROW_TYPES[declared]
    return Converted(array if array.type == wanted else array.cast(wanted), ())


def epoch_ms(array: pa.Array, unit: str) -> Converted:
    """Epoch ms (int64) of a time column: a timestamp, or integers (`int64`) of a unit (`s`, `ms`, `us`), cut to ms.

    A time outside the years 1 to 9999 doesn't fit, whatever the unit would make of it.
    """
    if pa.types.is_timestamp(array.type):
        times = _times(array)
        return Converted(times.values.cast(pa.int64()), times.misfits)
    converted = convert(array, "int64")
    value = filled(converted.values, 0).to_numpy(zero_copy_only=False)
    low, high = {"s": (FIRST_MS // 1000, LAST_MS // 1000), "us": (FIRST_MS * 1000, LAST_MS * 1000)}.get(
        unit, (FIRST_MS, LAST_MS)
    )
    wrong = (value < low) | (value > high)
    for misfit in converted.misfits:
        wrong |= misfit.rows
    if unit != "ms" or wrong.any():
        inside = np.where(wrong, 0, value)
        ms = inside * 1000 if unit == "s" else inside // 1000 if unit == "us" else inside
        null = converted.values.is_null().to_numpy(zero_copy_only=False)
        return Converted(pa.array(ms, mask=null | wrong), _misfits("lies outside the years 1 to 9999", wrong))
    return converted


# ---------------------------------------------------------------------- by declared type


def _integers(array: pa.Array, declared: str) -> Converted:
    wanted = ARROW_TYPES[declared]
    values, wrong = array, None
    if array.type != wanted:
        values, wrong = _cast(array, wanted)
    if declared == "int64" and pc.min(values).as_py() == MISSING_ID:
        reserved = pc.fill_null(pc.equal(values, MISSING_ID), False).to_numpy(zero_copy_only=False)
        values, wrong = _without(values, reserved), reserved if wrong is None else wrong | reserved
    return Converted(values, _misfits(f"does not fit {declared}", wrong))


def _cast(array: pa.Array, wanted: pa.DataType) -> tuple[pa.Array, Mask | None]:
    """(integers of a type, the rows whose value isn't one); a column in which all fit is cast in one go."""
    if pa.types.is_decimal(array.type) and array.type.bit_width < 128:
        array = array.cast(pa.decimal128(38, array.type.scale))
    try:
        return array.cast(wanted), None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    ends = np.iinfo(wanted.to_pandas_dtype())
    if pa.types.is_decimal(array.type):
        whole = [_whole(value, int(ends.min), int(ends.max)) for value in array.to_pylist()]
        wrong = np.array([value is None for value in whole]) & array.is_valid().to_numpy(zero_copy_only=False)
        return pa.array(whole, wanted), wrong
    outside = pc.greater(array, pa.scalar(int(ends.max), array.type))
    if pa.types.is_signed_integer(array.type):
        outside = pc.or_(outside, pc.less(array, pa.scalar(int(ends.min), array.type)))
    wrong = pc.fill_null(outside, False).to_numpy(zero_copy_only=False)
    return _without(array, wrong).cast(wanted), wrong


def _whole(value: Decimal | None, low: int, high: int) -> int | None:
    if value is None or value != value.to_integral_value() or not low <= value <= high:
        return None
    return int(value)


def _floats(array: pa.Array, declared: str) -> Converted:
    wanted = ARROW_TYPES[declared]
    if pa.types.is_floating(array.type):
        values = array if array.type == wanted else array.cast(wanted, safe=False)
        if not pc.any(pc.is_inf(values)).as_py():
            return Converted(values, ())
        infinite = _mask(pc.is_inf(array))
        beyond = _mask(pc.is_inf(values)) & ~infinite
        misfits = (*_misfits(NOT_FINITE, infinite), *_misfits(f"does not fit {declared}", beyond))
        return Converted(_without(values, infinite | beyond), misfits)
    values = _nearest(array) if pa.types.is_decimal(array.type) else array
    values = values.cast(wanted, safe=False)
    number = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
    wrong = ~np.isfinite(number)
    exact = 1 << (53 if declared == "float64" else 24)
    if pa.types.is_integer(array.type) or array.type.scale <= 0:
        # Below 2^53 (2^24) every integer is a float; above, only some are.
        for row in np.flatnonzero((np.abs(number) >= exact) & ~wrong).tolist():
            wrong[row] = int(number[row]) != array[row].as_py()
    return Converted(_without(values, wrong) if wrong.any() else values, _misfits(f"does not fit {declared}", wrong))


def _nearest(array: pa.Array) -> pa.Array:
    """The float64 nearest to each decimal. Arrow's own cast may be the one beside it."""
    scale = array.type.scale
    null = _mask(array.is_null())
    values = np.zeros(len(array))
    rest = ~null
    if 0 <= scale <= 22 and array.type.bit_width <= 128:
        wide = array.cast(pa.decimal128(38, scale))
        low, high = np.frombuffer(wide.buffers()[1], np.int64).reshape(-1, 2)[wide.offset : wide.offset + len(wide)].T
        # Both are floats exactly, so that their quotient is rounded once.
        small = (high == low >> 63) & (np.abs(low) < 1 << 53)
        values[small] = low[small] / 10.0**scale
        rest &= ~small
    for row in np.flatnonzero(rest).tolist():
        values[row] = float(array[row].as_py())
    return pa.array(values, mask=null)


def _times(array: pa.Array) -> Converted:
    unit, zone = array.type.unit, array.type.tz
    low, high = {"s": (FIRST_MS // 1000, LAST_MS // 1000), "ms": (FIRST_MS, LAST_MS)}.get(
        unit, (FIRST_MS * 1000, LAST_MS * 1000 + 999)
    )
    wrong = None
    if unit != "ns" and len(array) > array.null_count:  # 64 bits of nanoseconds don't leave those years
        since = array.cast(pa.int64())
        ends = pc.min_max(since)
        if ends["min"].as_py() < low or ends["max"].as_py() > high:
            wrong = _mask(pc.or_(pc.less(since, low), pc.greater(since, high)))
            array = _without(array, wrong)
    if unit in ("us", "ns") and len(array) > array.null_count and pc.min(array.cast(pa.int64())).as_py() < 0:
        # A cast cuts towards 1970, and a moment before it would become a later one.
        ms = pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False) // (1000 if unit == "us" else 10**6)
        array = pa.array(ms, mask=_mask(array.is_null())).cast(pa.timestamp("ms", zone))
    elif unit != "ms":
        array = array.cast(pa.timestamp("ms", zone), safe=False)
    return Converted(array.cast(ARROW_TYPES["timestamp"]), _misfits("lies outside the years 1 to 9999", wrong))


def _lists(array: pa.Array, declared: str) -> Converted:
    element = declared[5:-1]
    null = array.is_null().to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = array.flatten()
    inner = convert(flat, element)
    if inner.values is flat and array.type == ARROW_TYPES[declared]:
        return Converted(array, ())
    lengths[null] = 0  # a fixed-size list's null has a length
    row = np.repeat(np.arange(len(lengths)), lengths)
    misfits = []
    for misfit in inner.misfits:
        rows = np.zeros(len(array), np.bool_)
        rows[row[misfit.rows]] = True
        misfits.append(Misfit(f"has an element that {misfit.what}", rows))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    mask = pa.array(null) if null.any() else None
    return Converted(
        pa.ListArray.from_arrays(offsets, inner.values, type=ARROW_TYPES[declared], mask=mask), tuple(misfits)
    )


# ---------------------------------------------------------------------- parts


def filled(array: pa.Array, value: int) -> pa.Array:
    """`value` in place of nulls; the same array where there are none, which `pc.fill_null` would copy."""
    return pc.fill_null(array, value) if array.null_count else array


def _is_list(type_: pa.DataType) -> bool:
    kinds = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(kind(type_) for kind in kinds)


def _mask(condition: pa.Array) -> Mask:
    mask: Mask = pc.fill_null(condition, False).to_numpy(zero_copy_only=False)
    return mask


def _without(array: pa.Array, rows: Mask) -> pa.Array:
    """Null in some rows."""
    return pc.if_else(pa.array(~rows), array, pa.scalar(None, array.type))


def _misfits(what: str, wrong: Mask | None) -> tuple[Misfit, ...]:
    return () if wrong is None or not wrong.any() else (Misfit(what, wrong),)
