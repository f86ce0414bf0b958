"""dQ on sm_90: one warp asks for tiles, two warpgroups of 64 queries each compute; 3 products a tile of 64 keys, of which the first two run beside
the last one of the tile before."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from genrank.kernels.attention.hopper.gluon_tiles import copy_in, load_clean_tile, new_barriers, store_rows
from genrank.kernels.spans.hopper.gluon_walks import COLUMNS, LOG2E, hidden, tile_of, tiles_of, unit_of


@gluon.jit
def load(
    q_desc, g_desc, k_desc, v_desc, tiles, barriers, records, unit, q_column, g_column, k_column, v_column,
    BLOCK: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    """Ask for the unit's tiles, in the order in which they are used."""
    qs, gs, ks, vs = tiles
    q_full, k_full, k_empty, v_full, v_empty, tail = barriers
    start, unit_first, rows, queries, k_start, keys = unit_of(records, unit)
    one, two, count = tiles_of(records, unit, BLOCK)
    mbarrier.expect(q_full.index(0), 4 * 64 * DIM * 2)
    for half in gl.static_range(2):
        copy_in(q_desc, [start + unit_first + 64 * half, q_column], q_full.index(0), qs.index(half))
        copy_in(g_desc, [start + unit_first + 64 * half, g_column], q_full.index(0), gs.index(half))
    tails = 0
    for t in range(count):
        span, first, full = tile_of(records, unit, t, one, two, BLOCK)
        slot = t % K_STAGES
        mbarrier.wait(k_empty.index(slot), ((t // K_STAGES) & 1) ^ 1)
        tails = load_clean_tile(
            k_desc, k_start, first, keys, k_column, k_full.index(slot), ks, slot, tail.index(0), tails, K_STAGES, BLOCK, DIM
        )  # fmt: skip
        slot = t % V_STAGES
        mbarrier.wait(v_empty.index(slot), ((t // V_STAGES) & 1) ^ 1)
        tails = load_clean_tile(
            v_desc, k_start, first, keys, v_column, v_full.index(slot), vs, slot, tail.index(0), tails, V_STAGES, BLOCK, DIM
        )  # fmt: skip


@gluon.jit
def weights(
    scores, records, unit, t, one, two, bounds, width, row, scale, lse, BLOCK: gl.constexpr, SCORES: gl.constexpr
):
    """Softmax of a tile's scores, given its log-sum-exp (base 2) of each query."""
    exponent = scores * scale - lse[:, None]
    span, first, full = tile_of(records, unit, t, one, two, BLOCK)
    if not full:
        exponent = hidden(exponent, bounds, width, span, row, first, BLOCK, SCORES)
    return gl.exp2(exponent)


@gluon.jit
def compute(
    half: gl.constexpr, tiles, barriers, records, unit, bounds, width, lse_data, delta_data, dq_data, dq_token, dq_column, heads, head,
    scale, alpha, BLOCK: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    """Rows 64 half to 64 half + 63 of the unit."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, DIM, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    qs, gs, ks, vs = tiles
    q_full, k_full, k_empty, v_full, v_empty, tail = barriers
    start, unit_first, rows, queries, k_start, keys = unit_of(records, unit)
    one, two, count = tiles_of(records, unit, BLOCK)
    mine = unit_first + 64 * half
    row = mine + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    at = (start + row) * heads + head
    lse = gl.load(lse_data + at, mask=row < queries, other=float("inf")) * LOG2E
    delta = gl.load(delta_data + at, mask=row < queries, other=0.0)
    nothing = gl.zeros([64, BLOCK], gl.float32, SCORES)
    acc = gl.zeros([64, DIM], gl.float32, SUMS)
    q = qs.index(half)
    grad = gs.index(half)
    mbarrier.wait(q_full.index(0), 0)
    mbarrier.wait(k_full.index(0), 0)
    mbarrier.wait(v_full.index(0), 0)
    scores_token = warpgroup_mma(q, ks.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
    product_token = warpgroup_mma(grad, vs.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
    scores, product = warpgroup_mma_wait(0, [scores_token, product_token])
    mbarrier.arrive(v_empty.index(0))
    weight = weights(scores, records, unit, 0, one, two, bounds, width, start + mine, scale, lse, BLOCK, SCORES)
    of_scores = gl.convert_layout((weight * (product - delta[:, None])).to(gl.bfloat16), OPERAND)
    for t in range(1, count):
        k_slot = t % K_STAGES
        v_slot = t % V_STAGES
        before = (t - 1) % K_STAGES
        mbarrier.wait(k_full.index(k_slot), (t // K_STAGES) & 1)
        scores_token = warpgroup_mma(q, ks.index(k_slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(v_slot), (t // V_STAGES) & 1)
        product_token = warpgroup_mma(grad, vs.index(v_slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        sums = warpgroup_mma(of_scores, ks.index(before), acc, is_async=True)
        scores = warpgroup_mma_wait(2, [scores_token])
        weight = weights(scores, records, unit, t, one, two, bounds, width, start + mine, scale, lse, BLOCK, SCORES)
        # Completed long ago: block boundaries, beyond which ptxas does not move the arithmetic.
        mbarrier.wait(q_full.index(0), 0)
        product, weight = warpgroup_mma_wait(1, [product_token, weight])
        mbarrier.arrive(v_empty.index(v_slot))
        following = gl.convert_layout((weight * (product - delta[:, None])).to(gl.bfloat16), OPERAND)
        mbarrier.wait(q_full.index(0), 0)
        acc, _, of_scores = warpgroup_mma_wait(0, [sums, of_scores, following])
        mbarrier.arrive(k_empty.index(before))
    before = (count - 1) % K_STAGES
    sums = warpgroup_mma(of_scores, ks.index(before), acc, is_async=True)
    acc, _ = warpgroup_mma_wait(0, [sums, of_scores])
    mbarrier.arrive(k_empty.index(before))
    store_rows(dq_data, dq_token, dq_column, start, mine, rows, queries, acc * alpha, DIM)


@gluon.jit(do_not_specialize=["width"])
def gluon_span_query_kernel(
    q_desc, g_desc, k_desc, v_desc, dq_data, lse_data, delta_data, bounds, width, records, heads, scale, alpha,
    q_head, g_head, k_head, v_head, out_token, out_head,
    DIM: gl.constexpr, BLOCK: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr, REGISTERS: gl.constexpr,
    LOADER: gl.constexpr,
):  # fmt: skip
    """dq = alpha ds k, ds = weights * (grad_out v^T - delta), for 128 queries and one head. lse, delta: [tokens, heads]."""
    unit = gl.program_id(0) // heads
    head = gl.program_id(0) % heads
    if gl.load(records + unit * COLUMNS) == 0:
        return
    qs = gl.allocate_shared_memory(gl.bfloat16, [2, 64, DIM], q_desc.layout)
    gs = gl.allocate_shared_memory(gl.bfloat16, [2, 64, DIM], g_desc.layout)
    ks = gl.allocate_shared_memory(gl.bfloat16, [K_STAGES, BLOCK, DIM], k_desc.layout)
    vs = gl.allocate_shared_memory(gl.bfloat16, [V_STAGES, BLOCK, DIM], v_desc.layout)
    barriers = (
        new_barriers(1, 1), new_barriers(K_STAGES, 1), new_barriers(K_STAGES, 2), new_barriers(V_STAGES, 1),
        new_barriers(V_STAGES, 2), new_barriers(1, 1),
    )  # fmt: skip
    tiles = (qs, gs, ks, vs)
    fence_async_shared()
    column = head * out_head
    gl.warp_specialize(
        [
            (compute, (0, tiles, barriers, records, unit, bounds, width, lse_data, delta_data, dq_data, out_token, column, heads, head,
                       scale, alpha, BLOCK, K_STAGES, V_STAGES, DIM)),
            (compute, (1, tiles, barriers, records, unit, bounds, width, lse_data, delta_data, dq_data, out_token, column, heads, head,
                       scale, alpha, BLOCK, K_STAGES, V_STAGES, DIM)),
            (load, (q_desc, g_desc, k_desc, v_desc, tiles, barriers, records, unit, head * q_head, head * g_head, head * k_head,
                    head * v_head, BLOCK, K_STAGES, V_STAGES, DIM)),
        ],
        [4, 4],
        [REGISTERS, LOADER],
    )  # fmt: skip
