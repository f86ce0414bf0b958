"""Rows in order of one packed number, by whichever sort is the fastest for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from genrank.pipelines.exact_sums import Int


def ascends(values: Int) -> bool:
    """Whether none is less than the one before it."""
    return bool((values[1:] >= values[:-1]).all())


def sorted_rows(packed: Int, stable: bool = False) -> Int:
    """Order of rows by `packed`; equal ones come in any order unless it is to be `stable`. Where a row's number fits below its value both are
    sorted as one, which takes half of what numpy's sort of rows does."""
    if not len(packed):
        return np.empty(0, np.int64)
    bits = (len(packed) - 1).bit_length()
    first = int(packed.min())
    if int(packed.max()) - first >= 1 << (63 - bits):
        return np.argsort(packed, kind="stable" if stable else None)
    numbered = packed - first
    numbered <<= bits
    numbered |= np.arange(len(packed))
    numbered.sort()
    numbered &= (1 << bits) - 1
    return numbered


def order_by(packed: Int, *ties: Int | Callable[[Int], Int]) -> Int:
    """Order of rows by `packed`, then by `ties`, then as they are; only rows that tie pay for the ties, whose values, or what gives those
    of some rows, are given."""
    order, ordered = in_order(packed)
    places = tied(ordered)
    if len(places):
        rows = order[places]
        keys = [tie(rows) if callable(tie) else tie[rows] for tie in ties]
        order[places] = rows[np.lexsort((rows, *reversed(keys), ordered[places]))]
    return order


def in_order(packed: Int) -> tuple[Int, Int]:
    """(an order of rows by `packed`, `packed` in it)."""
    if ascends(packed):
        return np.arange(len(packed)), packed
    order = sorted_rows(packed)
    return order, packed[order]


def tied(ordered: Int) -> Int:
    """Places of ascending values that are equal to one beside them."""
    equal = ordered[1:] == ordered[:-1]
    if not equal.any():
        return np.empty(0, np.int64)
    return np.flatnonzero(np.append(equal, False) | np.append(False, equal))
