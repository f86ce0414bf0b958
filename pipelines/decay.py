"""Sums of amounts that halve with time: sum of amount * 2^(-(t - ts) / half-life).

With whole(t) = floor(t / half-life) and part(t) the rest as a fraction of one, an amount is brought to the start of its half-life, amount *
2^part(ts), which is rounded, and from there on by whole powers of two, which is exact. So amounts add up exactly (`exact_sums`) as of any
moment whose distance a double can hold, and the sum doesn't depend on order. 2^part is a polynomial of sums and products alone: the same bits
on every machine.
"""

from __future__ import annotations

import numpy as np

from genrank.pipelines.exact_sums import Float, Int, grouped, rounded, split

_NEGLIGIBLE = 256
"""Half-lives before the newest event of a merged row from which on an event adds nothing to it: no window reaches both."""
_TERMS = 16
_LN2 = 0.6931471805599453


def scaled(amounts: Float, ts: Int, half_life: int, origin: int | Int) -> Float:
    """float64 [n]: amounts at `ts` (epoch ms) as they would be at `origin`, in half-lives since the epoch: later ones are larger there."""
    there: Float = np.ldexp(amounts * _exp2((ts % half_life) / half_life), ts // half_life - origin)
    return there


def at(totals: Float, times: Int, half_life: int, origin: int | Int) -> Float:
    """float64 [n]: sums of `scaled` amounts, as of `times` (epoch ms)."""
    # 2^-part as 2^(1 - part) / 2.
    then: Float = np.ldexp(totals * _exp2(1.0 - (times % half_life) / half_life), origin - times // half_life - 1)
    return then


def merged(amounts: Float, ts: Int, codes: Int, newest: Int, half_life: int) -> Float:
    """float64 [groups]: the sum of each code's amounts as of its newest event.

    Args:
        amounts: finite float64 [n]; of a row merged before as of its own `ts`.
        ts, codes: int64 [n] when each happened, epoch ms, and its group.
        newest: int64 [groups] the greatest `ts` of each.
    """
    origin = newest // half_life
    near = ts // half_life - origin[codes] > -_NEGLIGIBLE
    there = scaled(np.where(near, amounts, 0.0), np.where(near, ts, newest[codes]), half_life, origin[codes])
    return at(rounded(grouped(split(there), codes, len(newest))), newest, half_life, origin)


def _exp2(powers: Float) -> Float:
    """2^powers of powers from 0 to 1, within 2 units in the last place; exact at both ends."""
    upper = powers > 0.5
    natural = np.where(upper, powers - 1.0, powers) * _LN2
    total = np.ones_like(natural)
    for term in range(_TERMS, 0, -1):
        total = 1.0 + natural / term * total
    return np.where(upper, 2.0 * total, total)
