"""dQ on sm_90: one warp asks for tiles, two warpgroups of 64 queries each compute; 3 products a tile of 64 keys.

narrow_query_kernel    head dims up to 128: the two products of a tile are computed with dQ's of the tile before; SiLU and its slope behind them.
                       Two units a program, as in forward
wide_query_kernel      256: K and V share a ring of three tiles, all that fits beside Q and the gradient. V is used first, so that its place is
                       free after a third of the iteration
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

from genrank.kernels.attention.hopper.gluon_tiles import (
    COLUMNS,
    HIDDEN,
    copy_in,
    hide,
    interval_of,
    is_full,
    load_clean_tile,
    new_barriers,
    record,
    silu_and_slope,
    store_rows,
    store_through,
    tile_first,
    tiles_of,
)


@gluon.jit
def load_queries(q_desc, g_desc, qs, gs, full, row, q_column, g_column, DIM: gl.constexpr):
    """Ask for the queries of a unit and for their gradients."""
    mbarrier.expect(full, 4 * 64 * DIM * 2)
    for half in gl.static_range(2):
        copy_in(q_desc, [row + 64 * half, q_column], full, qs.index(half))
        copy_in(g_desc, [row + 64 * half, g_column], full, gs.index(half))


@gluon.jit
def slopes(
    scores, t, first, of_interval, full_from, full_to, intervals, width, start, unit_first, half_alpha,
    BLOCK: gl.constexpr, SCORES: gl.constexpr,
):  # fmt: skip
    """2 silu' - 1 of a tile's scores, -1 for hidden pairs. The intervals are loaded where they are needed: held, they spill."""
    half_score = scores * half_alpha
    if not is_full(t, first, of_interval, full_from, full_to, BLOCK):
        query = unit_first + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
        begin, end = interval_of(intervals, width, t >= of_interval, start, query)
        key = first + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, SCORES))
        half_score = hide(half_score, HIDDEN, key, begin, end)
    _, slope = silu_and_slope(half_score)
    return slope


# --- head dims up to 128 ----------------------------------------------------------------------------------------------


@gluon.jit
def load(
    q_desc, g_desc, k_desc, v_desc, tiles, barriers, records, first_unit, last_unit, q_column, g_column, k_column, v_column,
    BLOCK: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    """Ask for the tiles of all units, in the order in which they are used."""
    qs, gs, ks, vs = tiles
    q_full, q_empty, k_full, k_empty, v_full, v_empty, tail = barriers
    loaded = 0
    tails = 0
    for at in range(first_unit, last_unit):
        start, first, rows, keys, low, high, own_low, own_high, full_from, full_to = record(records, at)
        of_interval, count = tiles_of(low, high, own_low, own_high, BLOCK)
        mbarrier.wait(q_empty.index(0), ((at - first_unit) & 1) ^ 1)
        load_queries(q_desc, g_desc, qs, gs, q_full.index(0), start + first, q_column, g_column, DIM)
        for t in range(count):
            tile = tile_first(t, low, own_low, of_interval, BLOCK)
            slot = loaded % K_STAGES
            mbarrier.wait(k_empty.index(slot), ((loaded // K_STAGES) & 1) ^ 1)
            tails = load_clean_tile(
                k_desc,
                start,
                tile,
                keys,
                k_column,
                k_full.index(slot),
                ks,
                slot,
                tail.index(0),
                tails,
                K_STAGES,
                BLOCK,
                DIM,
            )
            slot = loaded % V_STAGES
            mbarrier.wait(v_empty.index(slot), ((loaded // V_STAGES) & 1) ^ 1)
            tails = load_clean_tile(
                v_desc,
                start,
                tile,
                keys,
                v_column,
                v_full.index(slot),
                vs,
                slot,
                tail.index(0),
                tails,
                V_STAGES,
                BLOCK,
                DIM,
            )
            loaded += 1


@gluon.jit
def compute(
    half: gl.constexpr, tiles, barriers, records, first_unit, last_unit, intervals, width, scale_data, dq_data, dq_token,
    dq_column, half_alpha, BLOCK: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    """Rows 64 half to 64 half + 63 of each unit."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, DIM, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    qs, gs, ks, vs = tiles
    q_full, q_empty, k_full, k_empty, v_full, v_empty, tail = barriers
    nothing = gl.zeros([64, BLOCK], gl.float32, SCORES)
    q = qs.index(half)
    grad = gs.index(half)
    used = 0
    for at in range(first_unit, last_unit):
        start, unit_first, rows, keys, low, high, own_low, own_high, full_from, full_to = record(records, at)
        of_interval, count = tiles_of(low, high, own_low, own_high, BLOCK)
        mine = unit_first + 64 * half
        row = mine + gl.arange(0, 64, layout=gl.SliceLayout(1, SUMS))
        scale = gl.load(scale_data + start + row, mask=row < keys, other=0.0) * half_alpha
        acc = gl.zeros([64, DIM], gl.float32, SUMS)
        turn = (at - first_unit) & 1
        mbarrier.wait(q_full.index(0), turn)
        k_slot = used % K_STAGES
        v_slot = used % V_STAGES
        first = tile_first(0, low, own_low, of_interval, BLOCK)
        mbarrier.wait(k_full.index(k_slot), (used // K_STAGES) & 1)
        mbarrier.wait(v_full.index(v_slot), (used // V_STAGES) & 1)
        scores_token = warpgroup_mma(q, ks.index(k_slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        product_token = warpgroup_mma(grad, vs.index(v_slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        scores, product = warpgroup_mma_wait(0, [scores_token, product_token])
        mbarrier.arrive(v_empty.index(v_slot))
        slope = slopes(
            scores, 0, first, of_interval, full_from, full_to, intervals, width, start, mine, half_alpha, BLOCK, SCORES
        )
        of_scores = gl.convert_layout(gl.fma(product, slope, product).to(gl.bfloat16), OPERAND)
        for t in range(1, count):
            now = used + t
            k_slot = now % K_STAGES
            v_slot = now % V_STAGES
            before = (now - 1) % K_STAGES
            first = tile_first(t, low, own_low, of_interval, BLOCK)
            mbarrier.wait(k_full.index(k_slot), (now // K_STAGES) & 1)
            scores_token = warpgroup_mma(q, ks.index(k_slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(v_slot), (now // V_STAGES) & 1)
            product_token = warpgroup_mma(grad, vs.index(v_slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
            sums = warpgroup_mma(of_scores, ks.index(before), acc, is_async=True)
            scores = warpgroup_mma_wait(2, [scores_token])
            slope = slopes(
                scores,
                t,
                first,
                of_interval,
                full_from,
                full_to,
                intervals,
                width,
                start,
                mine,
                half_alpha,
                BLOCK,
                SCORES,
            )
            # Completed long ago: block boundaries, beyond which ptxas does not move the arithmetic (`gluon_forward`).
            mbarrier.wait(q_full.index(0), turn)
            product, slope = warpgroup_mma_wait(1, [product_token, slope])
            mbarrier.arrive(v_empty.index(v_slot))
            following = gl.convert_layout(gl.fma(product, slope, product).to(gl.bfloat16), OPERAND)
            mbarrier.wait(q_full.index(0), turn)
            acc, _, of_scores = warpgroup_mma_wait(0, [sums, of_scores, following])
            mbarrier.arrive(k_empty.index(before))
        mbarrier.arrive(q_empty.index(0))
        used += count
        before = (used - 1) % K_STAGES
        sums = warpgroup_mma(of_scores, ks.index(before), acc, is_async=True)
        acc, _ = warpgroup_mma_wait(0, [sums, of_scores])
        mbarrier.arrive(k_empty.index(before))
        store_rows(dq_data, dq_token, dq_column, start, mine, rows, keys, acc * scale[:, None], DIM)


@gluon.jit(do_not_specialize=["width"])
def narrow_query_kernel(
    q_desc, g_desc, k_desc, v_desc, dq_data, intervals, width, scale_data, records, heads, half_alpha,
    q_head, g_head, k_head, v_head, out_token, out_head,
    DIM: gl.constexpr, BLOCK: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr, REGISTERS: gl.constexpr,
    LOADER: gl.constexpr,
):  # fmt: skip
    """dq = alpha scale ds k, ds = (grad_out v^T) * silu'(alpha q k^T) * visible, for one head of the units of a pair of records."""
    pair = gl.program_id(0) // heads
    head = gl.program_id(0) % heads
    first_unit = 2 * pair
    last_unit = first_unit + gl.load(records + first_unit * COLUMNS)
    qs = gl.allocate_shared_memory(gl.bfloat16, [2, 64, DIM], q_desc.layout)
    gs = gl.allocate_shared_memory(gl.bfloat16, [2, 64, DIM], g_desc.layout)
    ks = gl.allocate_shared_memory(gl.bfloat16, [K_STAGES, BLOCK, DIM], k_desc.layout)
    vs = gl.allocate_shared_memory(gl.bfloat16, [V_STAGES, BLOCK, DIM], v_desc.layout)
    barriers = (
        new_barriers(1, 1), new_barriers(1, 2), new_barriers(K_STAGES, 1), new_barriers(K_STAGES, 2),
        new_barriers(V_STAGES, 1), new_barriers(V_STAGES, 2), new_barriers(1, 1),
    )  # fmt: skip
    tiles = (qs, gs, ks, vs)
    fence_async_shared()
    column = head * out_head
    gl.warp_specialize(
        [
            (compute, (0, tiles, barriers, records, first_unit, last_unit, intervals, width, scale_data, dq_data,
                       out_token, column, half_alpha, BLOCK, K_STAGES, V_STAGES, DIM)),
            (compute, (1, tiles, barriers, records, first_unit, last_unit, intervals, width, scale_data, dq_data,
                       out_token, column, half_alpha, BLOCK, K_STAGES, V_STAGES, DIM)),
            (load, (q_desc, g_desc, k_desc, v_desc, tiles, barriers, records, first_unit, last_unit, head * q_head,
                    head * g_head, head * k_head, head * v_head, BLOCK, K_STAGES, V_STAGES, DIM)),
        ],
        [4, 4],
        [REGISTERS, LOADER],
    )  # fmt: skip


# --- head dim 256 -----------------------------------------------------------------------------------------------------


@gluon.jit
def load_ring(
    q_desc, g_desc, k_desc, v_desc, tiles, barriers, records, unit, q_column, g_column, k_column, v_column,
    BLOCK: gl.constexpr, SLOTS: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    """Ask for the unit's tiles: V before K."""
    qs, gs, ring = tiles
    q_full, full, empty, tail = barriers
    loaded = 0
    tails = 0
    start, first, rows, keys, low, high, own_low, own_high, full_from, full_to = record(records, unit)
    of_interval, count = tiles_of(low, high, own_low, own_high, BLOCK)
    load_queries(q_desc, g_desc, qs, gs, q_full.index(0), start + first, q_column, g_column, DIM)
    for t in range(count):
        tile = tile_first(t, low, own_low, of_interval, BLOCK)
        slot = loaded % SLOTS
        mbarrier.wait(empty.index(slot), ((loaded // SLOTS) & 1) ^ 1)
        tails = load_clean_tile(
            v_desc, start, tile, keys, v_column, full.index(slot), ring, slot, tail.index(0), tails, SLOTS, BLOCK, DIM
        )
        loaded += 1
        slot = loaded % SLOTS
        mbarrier.wait(empty.index(slot), ((loaded // SLOTS) & 1) ^ 1)
        tails = load_clean_tile(
            k_desc, start, tile, keys, k_column, full.index(slot), ring, slot, tail.index(0), tails, SLOTS, BLOCK, DIM
        )
        loaded += 1


@gluon.jit
def compute_ring(
    half: gl.constexpr, tiles, barriers, records, unit, intervals, width, scale_data, dq_data, dq_token,
    dq_column, half_alpha, BLOCK: gl.constexpr, SLOTS: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    """Rows 64 half to 64 half + 63 of the unit."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, DIM, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    qs, gs, ring = tiles
    q_full, full, empty, tail = barriers
    nothing = gl.zeros([64, BLOCK], gl.float32, SCORES)
    q = qs.index(half)
    grad = gs.index(half)
    used = 0
    start, unit_first, rows, keys, low, high, own_low, own_high, full_from, full_to = record(records, unit)
    of_interval, count = tiles_of(low, high, own_low, own_high, BLOCK)
    mine = unit_first + 64 * half
    acc = gl.zeros([64, DIM], gl.float32, SUMS)
    mbarrier.wait(q_full.index(0), 0)
    for t in range(count):
        v_slot = used % SLOTS
        v_phase = (used // SLOTS) & 1
        k_slot = (used + 1) % SLOTS
        k_phase = ((used + 1) // SLOTS) & 1
        used += 2
        first = tile_first(t, low, own_low, of_interval, BLOCK)
        mbarrier.wait(full.index(v_slot), v_phase)
        product_token = warpgroup_mma(grad, ring.index(v_slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(full.index(k_slot), k_phase)
        scores_token = warpgroup_mma(q, ring.index(k_slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        product = warpgroup_mma_wait(1, [product_token])
        mbarrier.arrive(empty.index(v_slot))
        scores = warpgroup_mma_wait(0, [scores_token])
        slope = slopes(
            scores, t, first, of_interval, full_from, full_to, intervals, width, start, mine, half_alpha, BLOCK, SCORES
        )
        of_scores = gl.convert_layout(gl.fma(product, slope, product).to(gl.bfloat16), OPERAND)
        sums = warpgroup_mma(of_scores, ring.index(k_slot), acc, is_async=True)
        acc, _ = warpgroup_mma_wait(0, [sums, of_scores])
        mbarrier.arrive(empty.index(k_slot))
    start, unit_first, rows, keys, _, _, _, _, _, _ = record(records, unit)
    mine = unit_first + 64 * half
    row = mine + gl.arange(0, 64, layout=gl.SliceLayout(1, SUMS))
    scale = gl.load(scale_data + start + row, mask=row < keys, other=0.0) * half_alpha
    store_through(q, dq_data, dq_token, dq_column, start, mine, rows, keys, acc * scale[:, None], DIM)


@gluon.jit(do_not_specialize=["width"])
def wide_query_kernel(
    q_desc, g_desc, k_desc, v_desc, dq_data, intervals, width, scale_data, records, heads, half_alpha,
    q_head, g_head, k_head, v_head, out_token, out_head,
    DIM: gl.constexpr, BLOCK: gl.constexpr, SLOTS: gl.constexpr, REGISTERS: gl.constexpr, LOADER: gl.constexpr,
):  # fmt: skip
    """dq as `narrow_query_kernel`, of one unit."""
    unit = gl.program_id(0) // heads
    head = gl.program_id(0) % heads
    if gl.load(records + unit * COLUMNS) == 0:
        return
    qs = gl.allocate_shared_memory(gl.bfloat16, [2, 64, DIM], q_desc.layout)
    gs = gl.allocate_shared_memory(gl.bfloat16, [2, 64, DIM], g_desc.layout)
    ring = gl.allocate_shared_memory(gl.bfloat16, [SLOTS, BLOCK, DIM], k_desc.layout)
    barriers = (new_barriers(1, 1), new_barriers(SLOTS, 1), new_barriers(SLOTS, 2), new_barriers(1, 1))
    tiles = (qs, gs, ring)
    fence_async_shared()
    column = head * out_head
    gl.warp_specialize(
        [
            (compute_ring, (0, tiles, barriers, records, unit, intervals, width, scale_data, dq_data,
                            out_token, column, half_alpha, BLOCK, SLOTS, DIM)),
            (compute_ring, (1, tiles, barriers, records, unit, intervals, width, scale_data, dq_data,
                            out_token, column, half_alpha, BLOCK, SLOTS, DIM)),
            (load_ring, (q_desc, g_desc, k_desc, v_desc, tiles, barriers, records, unit, head * q_head,
                         head * g_head, head * k_head, head * v_head, BLOCK, SLOTS, DIM)),
        ],
        [4, 4],
        [REGISTERS, LOADER],
    )  # fmt: skip
