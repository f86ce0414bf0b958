"""What the Gluon kernels are made of: records of the plan, tiles by TMA, SiLU and its slope, tails, stores.

A tile at a sample's end holds the next sample's first rows. Their weights are 0, but 0 times NaN is NaN: where a product sums over
the rows of such a tile, the loading warps overwrite them in shared memory (`clear_tail`) before they announce the tile.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

# Renamed between the versions of Triton that are served: 3.7 and 3.9.
together = getattr(gl, "barrier", None) or gl.thread_barrier
copy_in = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared

COLUMNS = gl.constexpr(12)
"""Of a record (`plan.Records`)."""
HIDDEN = gl.constexpr(-1.0e4)
"""Half score of a hidden pair where the slope is wanted: its tanh is exactly -1, the weight 0 and twice the slope less one -1."""


@gluon.jit
def record(records, at):
    """(start, first, rows, keys, low, high, own_low, own_high, full_from, full_to) of a unit."""
    p = records + at * COLUMNS
    return (
        gl.load(p + 1), gl.load(p + 2), gl.load(p + 3), gl.load(p + 4), gl.load(p + 5), gl.load(p + 6), gl.load(p + 7),
        gl.load(p + 8), gl.load(p + 9), gl.load(p + 10),
    )  # fmt: skip


@gluon.jit
def tiles_of(low, high, own_low, own_high, BLOCK: gl.constexpr):
    """(tiles of the interval, tiles in all): after those of `[low, high)`, those of `[own_low, own_high)`."""
    of_interval = (high - low + BLOCK - 1) // BLOCK
    return of_interval, of_interval + (own_high - own_low + BLOCK - 1) // BLOCK


@gluon.jit
def tile_first(t, low, own_low, of_interval, BLOCK: gl.constexpr):
    """First row of tile t."""
    return gl.where(t < of_interval, low + t * BLOCK, own_low + (t - of_interval) * BLOCK)


@gluon.jit
def is_full(t, first, of_interval, full_from, full_to, BLOCK: gl.constexpr):
    """Whether every pair of the tile is visible."""
    return (t < of_interval) & (first >= full_from) & (first + BLOCK <= full_to)


@gluon.jit
def load_tile(descriptor, row, column, full, slot, ROWS: gl.constexpr, DIM: gl.constexpr):
    """Ask for one tile, bfloat16; `full` completes when it has come."""
    mbarrier.expect(full, ROWS * DIM * 2)
    copy_in(descriptor, [row, column], full, slot)


@gluon.jit
def load_clean_tile(
    descriptor, start, first, keys, column, full, tiles, slot, tail, tails, SLOTS: gl.constexpr, ROWS: gl.constexpr,
    DIM: gl.constexpr,
):  # fmt: skip
    """The same for rows `first` on of a sample, whose tail is cleared before `full` completes. tail: a barrier for those that have
    one; tails: how many there were, which is returned."""
    if first + ROWS > keys:
        load_tile(descriptor, start + first, column, tail, tiles.index(slot), ROWS, DIM)
        mbarrier.wait(tail, tails & 1)
        clear_tail(tiles, slot, gl.maximum(keys - first, 0), SLOTS, ROWS, DIM)
        mbarrier.arrive(full)
        tails += 1
    else:
        load_tile(descriptor, start + first, column, full, tiles.index(slot), ROWS, DIM)
    return tails


@gluon.jit
def clear_tail(tiles, slot, kept, SLOTS: gl.constexpr, ROWS: gl.constexpr, DIM: gl.constexpr):
    """Zeros for a tile's rows from `kept` on. Tiles lie in shared memory as panels of 64 columns, and those as groups of 8 rows."""
    PANELS: gl.constexpr = DIM // 64
    GROUPS: gl.constexpr = ROWS // 16
    PIECE: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    pieces = tiles._reinterpret(gl.bfloat16, [SLOTS * PANELS * GROUPS, 16, 64], PIECE)
    row = gl.arange(0, 16, layout=gl.SliceLayout(1, layout))
    for group in range(kept // 16, GROUPS):
        for panel in gl.static_range(PANELS):
            piece = pieces.index((slot * PANELS + panel) * GROUPS + group)
            values = piece.load(layout)
            piece.store(gl.where((16 * group + row < kept)[:, None], values, gl.zeros_like(values)))
    fence_async_shared()
    together()


@gluon.jit
def tanh_approx(x):
    """One special-function instruction; its error, 2^-11, drowns in bfloat16's 2^-9."""
    return gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def silu(half_score):
    """silu(x) of x = 2 half_score."""
    return gl.fma(half_score, tanh_approx(half_score), half_score)


@gluon.jit
def silu_and_slope(half_score):
    """silu(x) and 2 silu'(x) - 1 of x = 2 half_score (`kernels.attention.triton_tiles.silu_and_slope`)."""
    t = tanh_approx(half_score)
    return gl.fma(half_score, t, half_score), gl.fma(half_score, gl.fma(t, -t, 1.0), t)


@gluon.jit
def interval_of(intervals, width, to_self, start, query):
    """(first key, end of the keys) that queries of a sample see in a tile of the interval, or in one of own keys
    (`plan.Intervals`). Those beyond the sample get another's: nothing is stored for them, or their tile's tail is 0."""
    p = intervals + start + gl.where(to_self, 2 * width, 0)
    return gl.load(p + query), gl.load(p + width + query)


@gluon.jit
def hide(half_score, instead, key, begin, end):
    """`instead` for the pairs that are not visible; rows are queries and columns keys."""
    return gl.where((key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None]), half_score, instead)


@gluon.jit
def store_rows(data, token, column, start, first, rows, keys, values, DIM: gl.constexpr):
    """Store [64, DIM] from row `first` of a sample on, 16 bytes a thread: rows below `rows`, as zeros from `keys` on."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    put(data, token, column, start, first, rows, keys, gl.convert_layout(values.to(gl.bfloat16), layout), layout, DIM)


@gluon.jit
def store_through(slot, data, token, column, start, first, rows, keys, values, DIM: gl.constexpr):
    """The same, through a slot that is no longer read, where no other shared memory is left."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    slot.store(values.to(gl.bfloat16))
    put(data, token, column, start, first, rows, keys, slot.load(layout), layout, DIM)


@gluon.jit
def put(data, token, column, start, first, rows, keys, values, layout: gl.constexpr, DIM: gl.constexpr):
    """What both have in common: values are in a layout of 16 bytes a thread."""
    row = first + gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
    at = (start + row).to(gl.int64) * token + column
    values = gl.where((row < keys)[:, None], values, gl.zeros_like(values))
    dim = gl.arange(0, DIM, layout=gl.SliceLayout(0, layout))
    gl.store(data + at[:, None] + dim[None, :], values, mask=(row < rows)[:, None])


@gluon.jit
def new_barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """`COUNT` barriers, each of which completes a phase with `ARRIVALS` arrivals."""
    barriers = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for at in gl.static_range(COUNT):
        mbarrier.init(barriers.index(at), count=ARRIVALS)
    return barriers
