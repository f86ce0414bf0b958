"""dK and dV on sm_90: one warp asks for tiles, two warpgroups of 64 keys each compute both of their sums; 4 products a tile of 64 queries,
transposed: keys by queries."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from genrank.kernels.attention.hopper.gluon_tiles import copy_in, load_clean_tile, new_barriers, store_through
from genrank.kernels.spans.hopper.gluon_walks import CHUNK, COLUMNS, LOG2E, NOTHING, unit_of


@gluon.jit
def load(
    q_desc, g_desc, k_desc, v_desc, tiles, barriers, records, unit, q_column, g_column, k_column, v_column,
    BLOCK: gl.constexpr, STAGES: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    """Ask for the unit's keys and values, and then for the tiles of queries and gradients."""
    qs, gs, ks, vs = tiles
    k_full, v_full, q_full, q_empty, g_full, g_empty, tail = barriers
    start, unit_first, rows, keys, q_start, queries = unit_of(records, unit)
    p = records + unit * COLUMNS
    low = gl.load(p + 7)
    count = (gl.load(p + 8) - low + BLOCK - 1) // BLOCK
    mbarrier.expect(k_full.index(0), 2 * 64 * DIM * 2)
    mbarrier.expect(v_full.index(0), 2 * 64 * DIM * 2)
    for part in gl.static_range(2):
        copy_in(k_desc, [start + unit_first + 64 * part, k_column], k_full.index(0), ks.index(part))
        copy_in(v_desc, [start + unit_first + 64 * part, v_column], v_full.index(0), vs.index(part))
    tails = 0
    for t in range(count):
        first = low + t * BLOCK
        slot = t % STAGES
        free = ((t // STAGES) & 1) ^ 1
        mbarrier.wait(q_empty.index(slot), free)
        tails = load_clean_tile(
            q_desc, q_start, first, queries, q_column, q_full.index(slot), qs, slot, tail.index(0), tails, STAGES, BLOCK, DIM
        )  # fmt: skip
        mbarrier.wait(g_empty.index(slot), free)
        tails = load_clean_tile(
            g_desc, q_start, first, queries, g_column, g_full.index(slot), gs, slot, tail.index(0), tails, STAGES, BLOCK, DIM
        )  # fmt: skip


@gluon.jit
def weights(
    scores, first, part_first, q_start, queries, lse_data, heads, head, ordered, width, summary, sample_chunks, scale, completed,
    SPANS: gl.constexpr, BLOCK: gl.constexpr, SCORES: gl.constexpr,
):  # fmt: skip
    """Softmax of a tile's scores, 0 for hidden pairs. completed: a barrier whose phase 0 is over: block boundaries, at which nothing is held any
    longer that hid the pairs before them."""
    query = first + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, SCORES))
    key = part_first + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    lse = gl.load(lse_data + (q_start + query) * heads + head, mask=query < queries, other=float("inf")) * LOG2E
    exponent = scores * scale - lse[None, :]
    of = summary + (sample_chunks + first // CHUNK) * (4 * SPANS)
    seen = 0
    for span in gl.static_range(SPANS):
        whole = (gl.load(of + 4 * span + 2) <= part_first) & (gl.load(of + 4 * span + 3) >= part_first + 64)
        seen += gl.where(whole, 1, 0)
    if seen == 0:
        # Before the first span, between one and the next, behind the last one.
        p = ordered + q_start + query
        exponent = gl.where(key[:, None] < gl.load(p)[None, :], NOTHING, exponent)
        mbarrier.wait(completed, 0)
        for span in gl.static_range(1, SPANS):
            end = gl.load(p + (2 * span - 1) * width)
            begin = gl.load(p + 2 * span * width)
            exponent = gl.where((key[:, None] >= end[None, :]) & (key[:, None] < begin[None, :]), NOTHING, exponent)
            mbarrier.wait(completed, 0)
        exponent = gl.where(key[:, None] >= gl.load(p + (2 * SPANS - 1) * width)[None, :], NOTHING, exponent)
        mbarrier.wait(completed, 0)
    return gl.exp2(exponent)


@gluon.jit
def compute(
    part: gl.constexpr, tiles, barriers, records, unit, ordered, width, summary, lse_data, delta_data, dk_data, dv_data, token, column, heads,
    head, scale, alpha, SPANS: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    """dK and dV of keys 64 part to 64 part + 63 of the unit."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, DIM, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    qs, gs, ks, vs = tiles
    k_full, v_full, q_full, q_empty, g_full, g_empty, tail = barriers
    start, unit_first, rows, keys, q_start, queries = unit_of(records, unit)
    p = records + unit * COLUMNS
    low = gl.load(p + 7)
    count = (gl.load(p + 8) - low + BLOCK - 1) // BLOCK
    sample_chunks = gl.load(p + 9)
    mine = unit_first + 64 * part
    nothing = gl.zeros([64, BLOCK], gl.float32, SCORES)
    dk = gl.zeros([64, DIM], gl.float32, SUMS)
    dv = gl.zeros([64, DIM], gl.float32, SUMS)
    mbarrier.wait(k_full.index(0), 0)
    for t in range(count):
        slot = t % STAGES
        phase = (t // STAGES) & 1
        first = low + t * BLOCK
        # Always `part`, but not to the compiler, which would compute the products' descriptors before the loop and spill others.
        resident = part + (t >> 30)
        k = ks.index(resident)
        v = vs.index(resident)
        mbarrier.wait(q_full.index(slot), phase)
        scores_token = warpgroup_mma(k, qs.index(slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(0), 0)
        mbarrier.wait(g_full.index(slot), phase)
        product_token = warpgroup_mma(v, gs.index(slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(1, [scores_token])
        weight = weights(
            scores, first, mine, q_start, queries, lse_data, heads, head, ordered, width, summary, sample_chunks, scale,
            k_full.index(0), SPANS, BLOCK, SCORES,
        )  # fmt: skip
        rounded = gl.convert_layout(weight.to(gl.bfloat16), OPERAND)
        # Completed long ago: a block boundary, beyond which ptxas does not move the arithmetic.
        mbarrier.wait(k_full.index(0), 0)
        dv_token = warpgroup_mma(rounded, gs.index(slot), dv, is_async=True)
        product, weight = warpgroup_mma_wait(1, [product_token, weight])
        query = first + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, SCORES))
        delta = gl.load(delta_data + (q_start + query) * heads + head, mask=query < queries, other=0.0)
        of_scores = gl.convert_layout((weight * (product - delta[None, :])).to(gl.bfloat16), OPERAND)
        dk_token = warpgroup_mma(of_scores, qs.index(slot), dk, is_async=True)
        dv, _ = warpgroup_mma_wait(1, [dv_token, rounded])
        mbarrier.arrive(g_empty.index(slot))
        dk, _ = warpgroup_mma_wait(0, [dk_token, of_scores])
        mbarrier.arrive(q_empty.index(slot))
    # Where nobody sees these keys, what was asked for still lands in the place through which the sums are stored.
    mbarrier.wait(v_full.index(0), 0)
    start, unit_first, rows, keys, q_start, queries = unit_of(records, unit)
    mine = unit_first + 64 * part
    store_through(ks.index(part), dk_data, token, column, start, mine, rows, keys, dk * alpha, DIM)
    store_through(vs.index(part), dv_data, token, column, start, mine, rows, keys, dv, DIM)


@gluon.jit(do_not_specialize=["width"])
def gluon_span_key_kernel(
    q_desc, g_desc, k_desc, v_desc, dk_data, dv_data, lse_data, delta_data, ordered, width, summary, records, heads, scale, alpha,
    q_head, g_head, k_head, v_head, out_token, out_head,
    DIM: gl.constexpr, SPANS: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr, LOADER: gl.constexpr,
):  # fmt: skip
    """dv = weights^T grad_out and dk = alpha ds^T q, for 128 keys and one head."""
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
        new_barriers(STAGES, 2), new_barriers(1, 1),
    )  # fmt: skip
    tiles = (qs, gs, ks, vs)
    fence_async_shared()
    column = head * out_head
    gl.warp_specialize(
        [
            (compute, (0, tiles, barriers, records, unit, ordered, width, summary, lse_data, delta_data, dk_data, dv_data, out_token, column,
                       heads, head, scale, alpha, SPANS, BLOCK, STAGES, DIM)),
            (compute, (1, tiles, barriers, records, unit, ordered, width, summary, lse_data, delta_data, dk_data, dv_data, out_token, column,
                       heads, head, scale, alpha, SPANS, BLOCK, STAGES, DIM)),
            (load, (q_desc, g_desc, k_desc, v_desc, tiles, barriers, records, unit, head * q_head, head * g_head, head * k_head,
                    head * v_head, BLOCK, STAGES, DIM)),
        ],
        [4, 4],
        [REGISTERS, LOADER],
    )  # fmt: skip
