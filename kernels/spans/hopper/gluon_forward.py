"""Forward on sm_90: one warp asks for tiles, two warpgroups of 64 queries each compute. While the product of weights and values of one tile runs,
the softmax of the next one is computed."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from genrank.kernels.attention.hopper.gluon_tiles import copy_in, load_clean_tile, load_tile, new_barriers, store_rows
from genrank.kernels.spans.hopper.gluon_walks import COLUMNS, LN2, hidden, tile_of, tiles_of, unit_of


@gluon.jit
def load(
    q_desc, k_desc, v_desc, tiles, barriers, records, unit, q_column, k_column, v_column,
    BLOCK: gl.constexpr, STAGES: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    """Ask for the unit's tiles, in the order in which they are used."""
    qs, ks, vs = tiles
    q_full, k_full, k_empty, v_full, v_empty, tail = barriers
    start, unit_first, rows, queries, k_start, keys = unit_of(records, unit)
    one, two, count = tiles_of(records, unit, BLOCK)
    mbarrier.expect(q_full.index(0), 2 * 64 * DIM * 2)
    for half in gl.static_range(2):
        copy_in(q_desc, [start + unit_first + 64 * half, q_column], q_full.index(0), qs.index(half))
    tails = 0
    for t in range(count):
        span, first, full = tile_of(records, unit, t, one, two, BLOCK)
        slot = t % STAGES
        free = ((t // STAGES) & 1) ^ 1
        mbarrier.wait(k_empty.index(slot), free)
        load_tile(k_desc, k_start + first, k_column, k_full.index(slot), ks.index(slot), BLOCK, DIM)
        mbarrier.wait(v_empty.index(slot), free)
        tails = load_clean_tile(
            v_desc, k_start, first, keys, v_column, v_full.index(slot), vs, slot, tail.index(0), tails, STAGES, BLOCK, DIM
        )  # fmt: skip


@gluon.jit
def weights(
    scores, top, records, unit, t, one, two, bounds, width, row, scale,
    BLOCK: gl.constexpr, SCORES: gl.constexpr,
):  # fmt: skip
    """(2^(exponent - the greatest so far), that, and their sum) of a tile, 0 for hidden pairs. top: the greatest of the tiles before, finite from
    the start, so that no difference of infinities arises where a row sees nothing."""
    exponent = scores * scale
    span, first, full = tile_of(records, unit, t, one, two, BLOCK)
    if not full:
        exponent = hidden(exponent, bounds, width, span, row, first, BLOCK, SCORES)
    higher = gl.maximum(top, gl.max(exponent, 1))
    weight = gl.exp2(exponent - higher[:, None])
    return weight, higher, gl.sum(weight, 1)


@gluon.jit
def compute(
    half: gl.constexpr, tiles, barriers, records, unit, bounds, width, lse_data, out_data, out_token, out_column, heads, head, scale,
    BLOCK: gl.constexpr, STAGES: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    """Rows 64 half to 64 half + 63 of the unit."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, DIM, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    OF_SCORES: gl.constexpr = gl.SliceLayout(1, SCORES)
    OF_SUMS: gl.constexpr = gl.SliceLayout(1, SUMS)
    qs, ks, vs = tiles
    q_full, k_full, k_empty, v_full, v_empty, tail = barriers
    start, unit_first, rows, queries, k_start, keys = unit_of(records, unit)
    one, two, count = tiles_of(records, unit, BLOCK)
    mine = unit_first + 64 * half
    nothing = gl.zeros([64, BLOCK], gl.float32, SCORES)
    acc = gl.zeros([64, DIM], gl.float32, SUMS)
    top = gl.full([64], -1.0e30, gl.float32, OF_SCORES)
    q = qs.index(half)
    mbarrier.wait(q_full.index(0), 0)
    mbarrier.wait(k_full.index(0), 0)
    token = warpgroup_mma(q, ks.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, [token])
    mbarrier.arrive(k_empty.index(0))
    weight, top, total = weights(
        scores, top, records, unit, 0, one, two, bounds, width, start + mine, scale, BLOCK, SCORES
    )
    weight = gl.convert_layout(weight.to(gl.bfloat16), OPERAND)
    mbarrier.wait(k_full.index(1 % STAGES), 0, pred=count > 1)
    for t in range(1, count):
        slot = t % STAGES
        before = (t - 1) % STAGES
        token = warpgroup_mma(q, ks.index(slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(before), ((t - 1) // STAGES) & 1)
        sums = warpgroup_mma(weight, vs.index(before), acc, is_async=True)
        scores = warpgroup_mma_wait(1, [token])
        mbarrier.arrive(k_empty.index(slot))
        following, higher, more = weights(
            scores, top, records, unit, t, one, two, bounds, width, start + mine, scale, BLOCK, SCORES
        )
        following = gl.convert_layout(following.to(gl.bfloat16), OPERAND)
        shrink = gl.exp2(top - higher)
        total = total * shrink + more
        top = higher
        # A block boundary: ptxas would move the softmax below the wait for the product that it hides behind.
        mbarrier.wait(k_full.index((t + 1) % STAGES), ((t + 1) // STAGES) & 1, pred=t + 1 < count)
        acc, _, weight = warpgroup_mma_wait(0, [sums, weight, following])
        mbarrier.arrive(v_empty.index(before))
        acc *= gl.convert_layout(shrink, OF_SUMS)[:, None]
    slot = (count - 1) % STAGES
    mbarrier.wait(v_full.index(slot), ((count - 1) // STAGES) & 1)
    sums = warpgroup_mma(weight, vs.index(slot), acc, is_async=True)
    acc, _ = warpgroup_mma_wait(0, [sums, weight])
    mbarrier.arrive(v_empty.index(slot))
    some = total > 0.0
    total = gl.where(some, total, 1.0)
    row = mine + gl.arange(0, 64, layout=OF_SCORES)
    lse = gl.where(some, (top + gl.log2(total)) * LN2, float("inf"))
    gl.store(lse_data + (start + row) * heads + head, lse, mask=row < queries)
    share = gl.convert_layout(1.0 / total, OF_SUMS)
    store_rows(out_data, out_token, out_column, start, mine, rows, queries, acc * share[:, None], DIM)


@gluon.jit(do_not_specialize=["width"])
def gluon_span_forward_kernel(
    q_desc, k_desc, v_desc, out_data, lse_data, bounds, width, records, heads, scale, q_head, k_head, v_head, out_token, out_head,
    DIM: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr, LOADER: gl.constexpr,
):  # fmt: skip
    """out = softmax(alpha q k^T) v over the visible keys, and lse, their log-sum-exp [tokens, heads], for 128 queries and one head. scale: alpha
    log2 e."""
    unit = gl.program_id(0) // heads
    head = gl.program_id(0) % heads
    if gl.load(records + unit * COLUMNS) == 0:
        return
    qs = gl.allocate_shared_memory(gl.bfloat16, [2, 64, DIM], q_desc.layout)
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK, DIM], k_desc.layout)
    vs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK, DIM], v_desc.layout)
    barriers = (
        new_barriers(1, 1), new_barriers(STAGES, 1), new_barriers(STAGES, 2), new_barriers(STAGES, 1), new_barriers(STAGES, 2),
        new_barriers(1, 1),
    )  # fmt: skip
    tiles = (qs, ks, vs)
    fence_async_shared()
    column = head * out_head
    gl.warp_specialize(
        [
            (compute, (0, tiles, barriers, records, unit, bounds, width, lse_data, out_data, out_token, column, heads, head, scale,
                       BLOCK, STAGES, DIM)),
            (compute, (1, tiles, barriers, records, unit, bounds, width, lse_data, out_data, out_token, column, heads, head, scale,
                       BLOCK, STAGES, DIM)),
            (load, (q_desc, k_desc, v_desc, tiles, barriers, records, unit, head * q_head, head * k_head, head * v_head, BLOCK,
                    STAGES, DIM)),
        ],
        [4, 4],
        [REGISTERS, LOADER],
    )  # fmt: skip
