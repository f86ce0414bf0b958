"""Records of `triton_walks.py`, and the tiles that they name."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

COLUMNS = gl.constexpr(20)
"""Of a record."""
CHUNK = gl.constexpr(64)
"""Queries summarised together (`plan.Walks.summary`); tiles of dK and dV divide them."""
LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
NOTHING = gl.constexpr(float("-inf"))
"""Exponent of a hidden pair."""


@gluon.jit
def unit_of(records, at):
    """(first token, first row, rows to be written, rows, first token on the other side, rows there) of a unit and its sample."""
    p = records + at * COLUMNS
    return gl.load(p + 1), gl.load(p + 2), gl.load(p + 3), gl.load(p + 4), gl.load(p + 5), gl.load(p + 6)


@gluon.jit
def tiles_of(records, at, BLOCK: gl.constexpr):
    """Of a unit of queries: how many tiles of keys its first span has, the first two, and all three."""
    p = records + at * COLUMNS + 7
    one = (gl.load(p + 1) - gl.load(p) + BLOCK - 1) // BLOCK
    two = one + (gl.load(p + 5) - gl.load(p + 4) + BLOCK - 1) // BLOCK
    return one, two, two + (gl.load(p + 9) - gl.load(p + 8) + BLOCK - 1) // BLOCK


@gluon.jit
def tile_of(records, at, t, one, two, BLOCK: gl.constexpr):
    """(span, first key, whether every pair is visible) of tile t."""
    span = gl.where(t >= one, 1, 0) + gl.where(t >= two, 1, 0)
    before = gl.where(t >= two, two, gl.where(t >= one, one, 0))
    p = records + at * COLUMNS + 7 + 4 * span
    first = gl.load(p) + (t - before) * BLOCK
    return span, first, (first >= gl.load(p + 2)) & (first + BLOCK <= gl.load(p + 3))


@gluon.jit
def hidden(exponent, bounds, width, span, row, first, BLOCK: gl.constexpr, SCORES: gl.constexpr):
    """`NOTHING` for the pairs that a span hides; rows are queries, the batch's tokens from `row` on, and columns keys of the sample."""
    query = row + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    key = first + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, SCORES))
    p = bounds + 2 * span * width
    begin = gl.load(p + query)
    end = gl.load(p + width + query)
    return gl.where((key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None]), exponent, NOTHING)
