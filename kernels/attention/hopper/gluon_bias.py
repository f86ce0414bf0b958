"""Relative bias in the Gluon kernels: one head's tables lie in shared memory, half of each value, and each pair of tokens reads its rows there.

Tokens have their position, and their time since the sample's first token as two float32 (`plan.Places`), whose differences are exact.
A pair that is not visible reads some row, too: what it adds is hidden with its score.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from genrank.kernels.attention.hopper.gluon_tiles import together

COARSE = gl.constexpr(8388608.0)
"""2^23: how many units of time the coarse number counts in (`triton_walks.places_kernel`)."""
BUCKETS_A_DOUBLING = gl.constexpr(2.302814553355300)
"""ln 2 / `kernels.attention.bias.BUCKET_WIDTH`."""


@gluon.jit
def new_tables(POSITION_ROWS: gl.constexpr, TIME_ROWS: gl.constexpr):
    """Shared memory for a head's tables: (positions, times), [rows / 128, 128] float32 each. Rows: powers of two, or 0 without the table,
    which has 128 that nobody reads."""
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(vec=1, per_phase=1, max_phase=1, order=[0])
    positions = gl.allocate_shared_memory(gl.float32, [max(POSITION_ROWS // 128, 1), 128], FLAT)
    return positions, gl.allocate_shared_memory(gl.float32, [max(TIME_ROWS // 128, 1), 128], FLAT)


@gluon.jit
def fill(table, data, rows, heads, head, ROWS: gl.constexpr):
    """Half of each value of a head's table [rows, heads]."""
    lane = gl.arange(0, 128, layout=gl.BlockedLayout([1], [32], [4], [0]))
    for piece in range(ROWS // 128):
        row = 128 * piece + lane
        value = gl.load(data + row * heads + head, mask=row < rows, other=0.0)
        table.index(piece).store(0.5 * value.to(gl.float32))


@gluon.jit
def load_tables(
    tables,
    tables_full,
    given,
    head,
    POSITION_ROWS: gl.constexpr,
    TIME_ROWS: gl.constexpr,
    REACH: gl.constexpr,
    BUCKETS: gl.constexpr,
):
    """Fill the tables; `tables_full` completes when they are."""
    position_rows, time_rows = tables
    position_table, time_table, heads = given
    if POSITION_ROWS > 0:
        fill(position_rows, position_table, 2 * REACH + 1, heads, head, POSITION_ROWS)
    if TIME_ROWS > 0:
        fill(time_rows, time_table, BUCKETS, heads, head, TIME_ROWS)
    together()
    mbarrier.arrive(tables_full)


@gluon.jit
def unpacked(time):
    """(coarse, fine) of times, two float32 in an int64."""
    return (time >> 32).to(gl.int32).to(gl.float32, bitcast=True), time.to(gl.int32).to(gl.float32, bitcast=True)


@gluon.jit
def rows_of(table, row, ROWS: gl.constexpr, COLUMNS: gl.constexpr, SCORES: gl.constexpr):
    """Values of a table at [64, COLUMNS] rows."""
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(vec=1, per_phase=1, max_phase=1, order=[0])
    found = table._reinterpret(gl.float32, [ROWS], FLAT).gather(gl.reshape(row, [64 * COLUMNS]), 0)
    return gl.convert_layout(gl.reshape(found, [64, COLUMNS]), SCORES)


@gluon.jit
def log2_approx(x):
    """One special-function instruction; wrong by at most 2^-22."""
    return gl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def row_places(places, first, SCORES: gl.constexpr, POSITION_ROWS: gl.constexpr, TIME_ROWS: gl.constexpr):
    """(position, coarse time, fine time) of 64 tokens of the batch from `first` on, the rows of tiles; `first` for what no table asks for."""
    positions, times = places
    row = first + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    position = row
    coarse = row
    fine = row
    if POSITION_ROWS > 0:
        position = gl.load(positions + row)
    if TIME_ROWS > 0:
        coarse, fine = unpacked(gl.load(times + row))
    return position, coarse, fine


@gluon.jit
def half_scores(
    scores, half_alpha, rows, first_column, places, tables, tables_full,
    TRANSPOSED: gl.constexpr, COLUMNS: gl.constexpr, SCORES: gl.constexpr, POSITION_ROWS: gl.constexpr, TIME_ROWS: gl.constexpr,
    REACH: gl.constexpr, BUCKETS: gl.constexpr,
):  # fmt: skip
    """Half of `alpha scores + bias`, [64, COLUMNS]. rows: `row_places`; first_column: the batch's token of the first column. TRANSPOSED: rows
    are keys and columns queries. tables_full: a barrier whose phase 0 is over: block boundaries, beyond which nothing is held that was needed
    before them."""
    columns = first_column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, SCORES))
    row_position, row_coarse, row_fine = rows
    positions, times = places
    position_rows, time_rows = tables
    half_score = scores * half_alpha
    if TIME_ROWS > 0:
        coarse, fine = unpacked(gl.load(times + columns))
        # Of the difference the sign does not matter.
        elapsed = gl.fma(row_coarse[:, None] - coarse[None, :], COARSE, row_fine[:, None] - fine[None, :])
        bucket = (log2_approx(gl.maximum(gl.abs(elapsed), 1.0)) * BUCKETS_A_DOUBLING).to(gl.int32)
        half_score += rows_of(time_rows, gl.minimum(bucket, BUCKETS - 1), TIME_ROWS, COLUMNS, SCORES)
        mbarrier.wait(tables_full, 0)
    if POSITION_ROWS > 0:
        position = gl.load(positions + columns)
        if TRANSPOSED:
            distance = position[None, :] - (row_position - REACH)[:, None]
        else:
            distance = (row_position + REACH)[:, None] - position[None, :]
        row = gl.minimum(gl.maximum(distance, 0), 2 * REACH)
        half_score += rows_of(position_rows, row, POSITION_ROWS, COLUMNS, SCORES)
        mbarrier.wait(tables_full, 0)
    return half_score
