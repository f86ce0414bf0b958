"""Sums of float64 that are exact until they are rounded once, so that neither order nor how rows were split over tasks matters.

A double is m * 2^e with a 53-bit m. `split` writes each as whole numbers below 2^32 on a fixed grid of exponents (multiples of 32),
an int64 column per exponent; such columns add up exactly for up to 2^31 rows, and differences of running sums are exact as well.
`rounded` carries and gives the double that is nearest, up to the last two bits. (The superaccumulator of Kulisch, "Very fast and
exact accumulation of products", Computing 91, 2011, with columns in place of registers.)

Columns of whole numbers, whose sum stays below 2^53, take one int64 column.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
Float = NDArray[np.float64]
Parts = dict[int, Int]
"""Exponent -> int64 [n]: each value is the sum of its `part * 2**exponent`; exponents are multiples of 32."""

_BITS = 32
_LOW = (1 << _BITS) - 1


def split(values: Float) -> Parts:
    """Finite float64 [n] as whole numbers on the grid, exactly."""
    values = np.asarray(values, np.float64)
    if not len(values) or (np.abs(values).sum() < 1 << 53 and (values == np.rint(values)).all()):
        return {0: values.astype(np.int64)}
    fraction, exponent = np.frexp(values)
    whole = np.ldexp(np.abs(fraction), 53).astype(np.uint64)
    bottom = exponent.astype(np.int64) - 53
    place = bottom // _BITS
    shift = (bottom - place * _BITS).astype(np.uint64)
    low = (whole & np.uint64(_LOW)) << shift
    high = ((whole >> np.uint64(_BITS)) << shift) + (low >> np.uint64(_BITS))
    sign = np.sign(values).astype(np.int64)
    pieces = [
        part.astype(np.int64) * sign
        for part in (low & np.uint64(_LOW), high & np.uint64(_LOW), high >> np.uint64(_BITS))
    ]
    parts: Parts = {}
    present = values != 0
    for first in np.unique(place[present]).tolist():
        at = present & (place == first)
        for offset, piece in enumerate(pieces):
            column = parts.setdefault((first + offset) * _BITS, np.zeros(len(values), np.int64))
            column[at] += piece[at]
    return {exponent: column for exponent, column in parts.items() if column.any()} or {
        0: np.zeros(len(values), np.int64)
    }


def added(*sums: Parts) -> Parts:
    """Sums, term by term."""
    total: Parts = {}
    for parts in sums:
        for exponent, column in parts.items():
            total[exponent] = total[exponent] + column if exponent in total else column
    return total


def multiplied(some: Parts, others: Parts) -> Parts:
    """Products, row by row."""
    (sign, ours), (other_sign, theirs) = _magnitudes(some), _magnitudes(others)
    sign = sign * other_sign
    products: Parts = {0: np.zeros(len(sign), np.int64)}
    for exponent, column in ours.items():
        for other_exponent, other in theirs.items():
            product = column.astype(np.uint64) * other.astype(np.uint64)
            place = exponent + other_exponent
            for at, half in ((place, product & np.uint64(_LOW)), (place + _BITS, product >> np.uint64(_BITS))):
                products[at] = products.get(at, 0) + half.astype(np.int64) * sign
    sign, columns = _magnitudes(products)
    return {exponent: column * sign for exponent, column in columns.items()}


def grouped(values: Parts, codes: Int, groups: int) -> Parts:
    """Sum of the values of each code, 0 .. groups - 1."""
    sums: Parts = {}
    for exponent, column in values.items():
        sums[exponent] = np.zeros(groups, np.int64)
        np.add.at(sums[exponent], codes, column)
    return sums


def running(values: Parts) -> Parts:
    """Sums of the first 0, 1, ... n values."""
    return {exponent: np.concatenate([np.zeros(1, np.int64), np.cumsum(column)]) for exponent, column in values.items()}


def between(sums: Parts, begin: Int, end: Int) -> Parts:
    """Sums of the values begin .. end - 1 of what `running` gave; exact, since int64 differences undo what int64 sums wrap."""
    return {exponent: column[end] - column[begin] for exponent, column in sums.items()}


def rounded(sums: Parts) -> Float:
    """float64 [n] of what the parts add up to."""
    if sums.keys() == {0} and sums[0].min(initial=0) > -(1 << 53) and sums[0].max(initial=0) < 1 << 53:
        return sums[0].astype(np.float64)
    sign, columns = _magnitudes(sums)
    total = np.zeros(len(sign))
    for exponent, column in columns.items():
        total += np.ldexp(column.astype(np.float64), exponent)
    return total * sign


def _magnitudes(sums: Parts) -> tuple[Int, Parts]:
    """(1 or -1, the absolute value in parts from 0 to 2^32 - 1, by ascending exponent) of each row; parts that are all 0 are left out."""
    exponents = range(min(sums), max(sums) + 2 * _BITS + 1, _BITS)
    zero = np.zeros(len(next(iter(sums.values()))), np.int64)
    columns = _carried([sums.get(exponent, zero) for exponent in exponents])
    sign = np.where(columns[-1] < 0, -1, 1)
    carried = zip(exponents, _carried([column * sign for column in columns]), strict=True)
    return sign, {exponent: column for exponent, column in carried if column.any()} or {0: zero}


def _carried(columns: list[Int]) -> list[Int]:
    """The same number with all parts but the last from 0 to 2^32 - 1."""
    out, carry = [], np.zeros_like(columns[0])
    for column in columns[:-1]:
        column = column + carry
        out.append(column & _LOW)
        carry = column >> _BITS
    return [*out, columns[-1] + carry]
