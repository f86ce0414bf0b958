"""dK and dV on sm_90: one warp asks for tiles, two warpgroups compute; 4 products a tile of 64 queries, transposed: keys by queries.

narrow_key_kernel    head dims up to 128: each warpgroup has 64 keys and both of their sums
wide_key_kernel      256: one sum fills a warpgroup's registers. One computes scores, SiLU and dV of 64 keys, and hands the slope, bfloat16, to
                     the other through shared memory, which computes dK
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from genrank.kernels.attention.hopper.gluon_bias import half_scores, load_tables, new_tables, row_places
from genrank.kernels.attention.hopper.gluon_tiles import (
    COLUMNS,
    HIDDEN,
    copy_in,
    is_full,
    load_clean_tile,
    new_barriers,
    record,
    silu_and_slope,
    store_through,
    tile_first,
    tiles_of,
)


@gluon.jit
def load(
    q_desc, g_desc, k_desc, v_desc, tiles, barriers, records, unit, q_column, g_column, k_column, v_column, tables, given, head,
    PARTS: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr, DIM: gl.constexpr, POSITION_ROWS: gl.constexpr, TIME_ROWS: gl.constexpr,
    REACH: gl.constexpr, BUCKETS: gl.constexpr,
):  # fmt: skip
    """Ask for the unit's keys and values, 64 rows a part, and then for the tiles of queries and gradients; the bias's tables come first."""
    qs, gs, ks, vs = tiles
    k_full, v_full, q_full, q_empty, g_full, g_empty, tail, tables_full = barriers
    start, unit_first, rows, keys, low, high, own_low, own_high, full_from, full_to = record(records, unit)
    of_interval, count = tiles_of(low, high, own_low, own_high, BLOCK)
    tails = 0
    if POSITION_ROWS + TIME_ROWS > 0:
        load_tables(tables, tables_full.index(0), given, head, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS)
    mbarrier.expect(k_full.index(0), PARTS * 64 * DIM * 2)
    for part in gl.static_range(PARTS):
        copy_in(k_desc, [start + unit_first + 64 * part, k_column], k_full.index(0), ks.index(part))
    for t in range(count):
        tile = tile_first(t, low, own_low, of_interval, BLOCK)
        slot = t % STAGES
        free = ((t // STAGES) & 1) ^ 1
        mbarrier.wait(q_empty.index(slot), free)
        tails = load_clean_tile(
            q_desc, start, tile, keys, q_column, q_full.index(slot), qs, slot, tail.index(0), tails, STAGES, BLOCK, DIM
        )
        if t == 0:
            mbarrier.expect(v_full.index(0), PARTS * 64 * DIM * 2)
            for part in gl.static_range(PARTS):
                copy_in(v_desc, [start + unit_first + 64 * part, v_column], v_full.index(0), vs.index(part))
        mbarrier.wait(g_empty.index(slot), free)
        tails = load_clean_tile(
            g_desc, start, tile, keys, g_column, g_full.index(slot), gs, slot, tail.index(0), tails, STAGES, BLOCK, DIM
        )


@gluon.jit
def visible_half_scores(
    scores, t, first, of_interval, full_from, full_to, intervals, width, start, part_first, half_alpha, completed, rows, tables, tables_full, places,
    BLOCK: gl.constexpr, SCORES: gl.constexpr, POSITION_ROWS: gl.constexpr, TIME_ROWS: gl.constexpr,
    REACH: gl.constexpr, BUCKETS: gl.constexpr,
):  # fmt: skip
    """Half scores of a tile, `HIDDEN` for hidden pairs. completed, tables_full: barriers whose phase 0 is over: block boundaries. At the former
    the intervals' begins are no longer held when their ends are loaded."""
    key = part_first + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    query = first + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, SCORES))
    half_score = half_scores(
        scores, half_alpha, rows, start + first, places, tables, tables_full, True, BLOCK, SCORES, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS
    )  # fmt: skip
    if not is_full(t, first, of_interval, full_from, full_to, BLOCK):
        p = intervals + start + gl.where(t >= of_interval, 2 * width, 0)
        begin = gl.load(p + query)
        half_score = gl.where(key[:, None] >= begin[None, :], half_score, HIDDEN)
        mbarrier.wait(completed, 0)
        end = gl.load(p + width + query)
        half_score = gl.where(key[:, None] < end[None, :], half_score, HIDDEN)
    return half_score


# --- head dims up to 128 ----------------------------------------------------------------------------------------------


@gluon.jit
def compute(
    part: gl.constexpr, tiles, barriers, records, unit, intervals, width, scale_data, data, token, column, half_alpha, tables, places,
    BLOCK: gl.constexpr, STAGES: gl.constexpr, DIM: gl.constexpr, POSITION_ROWS: gl.constexpr, TIME_ROWS: gl.constexpr,
    REACH: gl.constexpr, BUCKETS: gl.constexpr,
):  # fmt: skip
    """dK and dV of keys 64 part to 64 part + 63 of the unit."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, DIM, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    qs, gs, ks, vs = tiles
    k_full, v_full, q_full, q_empty, g_full, g_empty, tail, tables_full = barriers
    start, unit_first, rows, keys, low, high, own_low, own_high, full_from, full_to = record(records, unit)
    of_interval, count = tiles_of(low, high, own_low, own_high, BLOCK)
    mine = unit_first + 64 * part
    nothing = gl.zeros([64, BLOCK], gl.float32, SCORES)
    placed = row_places(places, start + mine, SCORES, POSITION_ROWS, TIME_ROWS)
    dk = gl.zeros([64, DIM], gl.float32, SUMS)
    dv = gl.zeros([64, DIM], gl.float32, SUMS)
    if POSITION_ROWS + TIME_ROWS > 0:
        mbarrier.wait(tables_full.index(0), 0)
    mbarrier.wait(k_full.index(0), 0)
    for t in range(count):
        slot = t % STAGES
        phase = (t // STAGES) & 1
        first = tile_first(t, low, own_low, of_interval, BLOCK)
        # Always `part`, but not to the compiler, which would compute the products' descriptors before the loop and spill others.
        resident = part + (t >> 30)
        k = ks.index(resident)
        v = vs.index(resident)
        mbarrier.wait(q_full.index(slot), phase)
        scores_token = warpgroup_mma(k, qs.index(slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(0), 0)
        mbarrier.wait(g_full.index(slot), phase)
        # With a bias this product waits until its registers are no longer needed.
        if POSITION_ROWS + TIME_ROWS > 0:
            scores = warpgroup_mma_wait(0, [scores_token])
        else:
            product_token = warpgroup_mma(v, gs.index(slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
            scores = warpgroup_mma_wait(1, [scores_token])
        half_score = visible_half_scores(
            scores, t, first, of_interval, full_from, full_to, intervals, width, start, mine, half_alpha,
            k_full.index(0), placed, tables, tables_full.index(0), places, BLOCK, SCORES, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS,
        )  # fmt: skip
        if POSITION_ROWS + TIME_ROWS > 0:
            product_token = warpgroup_mma(v, gs.index(slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        weight, slope = silu_and_slope(half_score)
        weight = gl.convert_layout(weight.to(gl.bfloat16), OPERAND)
        # Completed long ago: a block boundary, beyond which ptxas does not move the arithmetic (`gluon_forward`).
        mbarrier.wait(k_full.index(0), 0)
        dv_token = warpgroup_mma(weight, gs.index(slot), dv, is_async=True)
        product, slope = warpgroup_mma_wait(1, [product_token, slope])
        of_scores = gl.convert_layout(gl.fma(product, slope, product).to(gl.bfloat16), OPERAND)
        dk_token = warpgroup_mma(of_scores, qs.index(slot), dk, is_async=True)
        dv, _ = warpgroup_mma_wait(1, [dv_token, weight])
        mbarrier.arrive(g_empty.index(slot))
        dk, _ = warpgroup_mma_wait(0, [dk_token, of_scores])
        mbarrier.arrive(q_empty.index(slot))
    start, unit_first, rows, keys, _, _, _, _, _, _ = record(records, unit)
    mine = unit_first + 64 * part
    share = gl.load(scale_data + start)
    store_through(ks.index(part), data, token, column, start, mine, rows, keys, dk * (share * half_alpha), DIM)
    data += width.to(gl.int64) * token
    store_through(vs.index(part), data, token, column, start, mine, rows, keys, dv * share, DIM)


@gluon.jit(do_not_specialize=["width"])
def narrow_key_kernel(
    q_desc, g_desc, k_desc, v_desc, data, intervals, width, scale_data, records, heads, half_alpha,
    q_head, g_head, k_head, v_head, out_token, out_head, position_table, time_table, positions, times,
    DIM: gl.constexpr, POSITION_ROWS: gl.constexpr, TIME_ROWS: gl.constexpr, REACH: gl.constexpr,
    BUCKETS: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr, LOADER: gl.constexpr,
):  # fmt: skip
    """dv = scale weights^T grad_out and dk = alpha scale ds^T q, for 128 keys and one head. Needs one scale a sample.
    data: dk, and after it dv, [2, width, heads, DIM]."""
    unit = gl.program_id(0) // heads
    head = gl.program_id(0) % heads
    if gl.load(records + unit * COLUMNS) == 0:
        return
    ks = gl.allocate_shared_memory(gl.bfloat16, [2, 64, DIM], k_desc.layout)
    vs = gl.allocate_shared_memory(gl.bfloat16, [2, 64, DIM], v_desc.layout)
    qs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK, DIM], q_desc.layout)
    gs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK, DIM], g_desc.layout)
    barriers = (
        new_barriers(1, 1), new_barriers(1, 1), new_barriers(STAGES, 1), new_barriers(STAGES, 2), new_barriers(STAGES, 1),
        new_barriers(STAGES, 2), new_barriers(1, 1), new_barriers(1, 1),
    )  # fmt: skip
    tables = new_tables(POSITION_ROWS, TIME_ROWS)
    given = (position_table, time_table, heads)
    places = (positions, times)
    tiles = (qs, gs, ks, vs)
    fence_async_shared()
    column = head * out_head
    gl.warp_specialize(
        [
            (compute, (0, tiles, barriers, records, unit, intervals, width, scale_data, data, out_token, column,
                       half_alpha, tables, places, BLOCK, STAGES, DIM, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS)),
            (compute, (1, tiles, barriers, records, unit, intervals, width, scale_data, data, out_token, column,
                       half_alpha, tables, places, BLOCK, STAGES, DIM, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS)),
            (load, (q_desc, g_desc, k_desc, v_desc, tiles, barriers, records, unit, head * q_head, head * g_head, head * k_head,
                    head * v_head, tables, given, head, 2, BLOCK, STAGES, DIM, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS)),
        ],
        [4, 4],
        [REGISTERS, LOADER],
    )  # fmt: skip


# --- head dim 256 -----------------------------------------------------------------------------------------------------


@gluon.jit
def compute_values(
    tiles, barriers, slopes, records, unit, intervals, width, scale_data, data, token, column, half_alpha, tables, places,
    BLOCK: gl.constexpr, STAGES: gl.constexpr, DIM: gl.constexpr, POSITION_ROWS: gl.constexpr, TIME_ROWS: gl.constexpr,
    REACH: gl.constexpr, BUCKETS: gl.constexpr,
):  # fmt: skip
    """dV of the unit's 64 keys, and each tile's slopes for `compute_keys`."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, DIM, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    qs, gs, ks, vs = tiles
    k_full, v_full, q_full, q_empty, g_full, g_empty, tail, tables_full = barriers
    buffers, s_full, s_empty = slopes
    start, unit_first, rows, keys, low, high, own_low, own_high, full_from, full_to = record(records, unit)
    of_interval, count = tiles_of(low, high, own_low, own_high, BLOCK)
    nothing = gl.zeros([64, BLOCK], gl.float32, SCORES)
    placed = row_places(places, start + unit_first, SCORES, POSITION_ROWS, TIME_ROWS)
    dv = gl.zeros([64, DIM], gl.float32, SUMS)
    k = ks.index(0)
    if POSITION_ROWS + TIME_ROWS > 0:
        mbarrier.wait(tables_full.index(0), 0)
    mbarrier.wait(k_full.index(0), 0)
    for t in range(count):
        slot = t % STAGES
        phase = (t // STAGES) & 1
        first = tile_first(t, low, own_low, of_interval, BLOCK)
        mbarrier.wait(q_full.index(slot), phase)
        token_ = warpgroup_mma(k, qs.index(slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(0, [token_])
        mbarrier.arrive(q_empty.index(slot))
        half_score = visible_half_scores(
            scores, t, first, of_interval, full_from, full_to, intervals, width, start, unit_first, half_alpha,
            k_full.index(0), placed, tables, tables_full.index(0), places, BLOCK, SCORES, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS,
        )  # fmt: skip
        weight, slope = silu_and_slope(half_score)
        weight = gl.convert_layout(weight.to(gl.bfloat16), OPERAND)
        mbarrier.wait(g_full.index(slot), phase)
        dv_token = warpgroup_mma(weight, gs.index(slot), dv, is_async=True)
        mbarrier.wait(s_empty.index(t % 2), ((t // 2) & 1) ^ 1)
        buffers.index(t % 2).store(slope.to(gl.bfloat16))
        mbarrier.arrive(s_full.index(t % 2))
        dv, _ = warpgroup_mma_wait(0, [dv_token, weight])
        mbarrier.arrive(g_empty.index(slot))
    start, unit_first, rows, keys, _, _, _, _, _, _ = record(records, unit)
    data += width.to(gl.int64) * token
    store_through(k, data, token, column, start, unit_first, rows, keys, dv * gl.load(scale_data + start), DIM)


@gluon.jit
def compute_keys(
    tiles, barriers, slopes, records, unit, scale_data, data, token, column, half_alpha,
    BLOCK: gl.constexpr, STAGES: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    """dK of the unit's 64 keys, with the slopes of `compute_values`."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, DIM, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    qs, gs, ks, vs = tiles
    k_full, v_full, q_full, q_empty, g_full, g_empty, tail, tables_full = barriers
    buffers, s_full, s_empty = slopes
    start, unit_first, rows, keys, low, high, own_low, own_high, full_from, full_to = record(records, unit)
    of_interval, count = tiles_of(low, high, own_low, own_high, BLOCK)
    nothing = gl.zeros([64, BLOCK], gl.float32, SCORES)
    dk = gl.zeros([64, DIM], gl.float32, SUMS)
    v = vs.index(0)
    mbarrier.wait(v_full.index(0), 0)
    for t in range(count):
        slot = t % STAGES
        phase = (t // STAGES) & 1
        first = tile_first(t, low, own_low, of_interval, BLOCK)
        mbarrier.wait(g_full.index(slot), phase)
        product_token = warpgroup_mma(v, gs.index(slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(s_full.index(t % 2), (t // 2) & 1)
        slope = buffers.index(t % 2).load(SCORES).to(gl.float32)
        product = warpgroup_mma_wait(0, [product_token])
        mbarrier.arrive(g_empty.index(slot))
        mbarrier.arrive(s_empty.index(t % 2))
        of_scores = gl.convert_layout(gl.fma(product, slope, product).to(gl.bfloat16), OPERAND)
        mbarrier.wait(q_full.index(slot), phase)
        dk_token = warpgroup_mma(of_scores, qs.index(slot), dk, is_async=True)
        dk, _ = warpgroup_mma_wait(0, [dk_token, of_scores])
        mbarrier.arrive(q_empty.index(slot))
    start, unit_first, rows, keys, _, _, _, _, _, _ = record(records, unit)
    share = gl.load(scale_data + start) * half_alpha
    store_through(v, data, token, column, start, unit_first, rows, keys, dk * share, DIM)


@gluon.jit(do_not_specialize=["width"])
def wide_key_kernel(
    q_desc, g_desc, k_desc, v_desc, data, intervals, width, scale_data, records, heads, half_alpha,
    q_head, g_head, k_head, v_head, out_token, out_head, position_table, time_table, positions, times,
    DIM: gl.constexpr, POSITION_ROWS: gl.constexpr, TIME_ROWS: gl.constexpr, REACH: gl.constexpr,
    BUCKETS: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr, LOADER: gl.constexpr,
):  # fmt: skip
    """dk and dv as `narrow_key_kernel`, for 64 keys and one head."""
    SLOPES: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    unit = gl.program_id(0) // heads
    head = gl.program_id(0) % heads
    if gl.load(records + unit * COLUMNS) == 0:
        return
    ks = gl.allocate_shared_memory(gl.bfloat16, [1, 64, DIM], k_desc.layout)
    vs = gl.allocate_shared_memory(gl.bfloat16, [1, 64, DIM], v_desc.layout)
    qs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK, DIM], q_desc.layout)
    gs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK, DIM], g_desc.layout)
    buffers = gl.allocate_shared_memory(gl.bfloat16, [2, 64, BLOCK], SLOPES)
    barriers = (
        new_barriers(1, 1), new_barriers(1, 1), new_barriers(STAGES, 1), new_barriers(STAGES, 2), new_barriers(STAGES, 1),
        new_barriers(STAGES, 2), new_barriers(1, 1), new_barriers(1, 1),
    )  # fmt: skip
    tables = new_tables(POSITION_ROWS, TIME_ROWS)
    given = (position_table, time_table, heads)
    places = (positions, times)
    slopes = (buffers, new_barriers(2, 1), new_barriers(2, 1))
    tiles = (qs, gs, ks, vs)
    fence_async_shared()
    column = head * out_head
    gl.warp_specialize(
        [
            (compute_values, (tiles, barriers, slopes, records, unit, intervals, width, scale_data, data, out_token, column,
                              half_alpha, tables, places, BLOCK, STAGES, DIM, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS)),
            (compute_keys, (tiles, barriers, slopes, records, unit, scale_data, data, out_token, column, half_alpha, BLOCK, STAGES,
                            DIM)),
            (load, (q_desc, g_desc, k_desc, v_desc, tiles, barriers, records, unit, head * q_head, head * g_head, head * k_head,
                    head * v_head, tables, given, head, 1, BLOCK, STAGES, DIM, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS)),
        ],
        [4, 4],
        [REGISTERS, LOADER],
    )  # fmt: skip
