"""Forward on sm_90: one warp asks for tiles, two warpgroups of 64 queries each compute.

A program computes the units of one record pair, a heavy and a light one of the same sample; the loading warp runs ahead into the second.
While the product of weights and values of one tile runs, the SiLU of the next one is computed.
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
    copy_in,
    hide,
    interval_of,
    is_full,
    load_clean_tile,
    load_tile,
    new_barriers,
    record,
    silu,
    store_rows,
    store_through,
    tile_first,
    tiles_of,
    together,
)


@gluon.jit
def load(
    q_desc, k_desc, v_desc, tiles, barriers, records, first_unit, last_unit, q_column, k_column, v_column, tables, given, head,
    BLOCK: gl.constexpr, STAGES: gl.constexpr, DIM: gl.constexpr, POSITION_ROWS: gl.constexpr, TIME_ROWS: gl.constexpr,
    REACH: gl.constexpr, BUCKETS: gl.constexpr,
):  # fmt: skip
    """Ask for the tiles of all units, in the order in which they are used; the bias's tables come first."""
    qs, ks, vs = tiles
    q_full, q_empty, k_full, k_empty, v_full, v_empty, tail, tables_full = barriers
    if POSITION_ROWS + TIME_ROWS > 0:
        load_tables(tables, tables_full.index(0), given, head, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS)
    loaded = 0
    tails = 0
    for at in range(first_unit, last_unit):
        start, first, rows, keys, low, high, own_low, own_high, full_from, full_to = record(records, at)
        of_interval, count = tiles_of(low, high, own_low, own_high, BLOCK)
        mbarrier.wait(q_empty.index(0), ((at - first_unit) & 1) ^ 1)
        mbarrier.expect(q_full.index(0), 2 * 64 * DIM * 2)
        for half in gl.static_range(2):
            copy_in(q_desc, [start + first + 64 * half, q_column], q_full.index(0), qs.index(half))
        for t in range(count):
            tile = tile_first(t, low, own_low, of_interval, BLOCK)
            slot = loaded % STAGES
            free = ((loaded // STAGES) & 1) ^ 1
            mbarrier.wait(k_empty.index(slot), free)
            load_tile(k_desc, start + tile, k_column, k_full.index(slot), ks.index(slot), BLOCK, DIM)
            mbarrier.wait(v_empty.index(slot), free)
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
                STAGES,
                BLOCK,
                DIM,
            )
            loaded += 1


@gluon.jit
def weights(
    scores, t, first, of_interval, full_from, full_to, begin, end, intervals, width, start, mine, half_alpha, rows, tables, tables_full, places,
    BLOCK: gl.constexpr, SCORES: gl.constexpr, OPERAND: gl.constexpr, POSITION_ROWS: gl.constexpr, TIME_ROWS: gl.constexpr,
    REACH: gl.constexpr, BUCKETS: gl.constexpr,
):  # fmt: skip
    """SiLU of a tile's scores, of its visible pairs, as the next product takes them."""
    half_score = half_scores(
        scores, half_alpha, rows, start + first, places, tables, tables_full, False, BLOCK, SCORES, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS
    )  # fmt: skip
    if not is_full(t, first, of_interval, full_from, full_to, BLOCK):
        key = first + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, SCORES))
        if t >= of_interval:
            query = mine + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
            begin, end = interval_of(intervals, width, True, start, query)
        half_score = hide(half_score, 0.0, key, begin, end)
    return gl.convert_layout(silu(half_score).to(gl.bfloat16), OPERAND)


@gluon.jit
def compute(
    half: gl.constexpr, tiles, barriers, records, first_unit, last_unit, intervals, width, scale_data, out_data,
    out_token, out_column, half_alpha, tables, places, BLOCK: gl.constexpr, STAGES: gl.constexpr, DIM: gl.constexpr, POSITION_ROWS: gl.constexpr, TIME_ROWS: gl.constexpr,
    REACH: gl.constexpr, BUCKETS: gl.constexpr,
):  # fmt: skip
    """Rows 64 half to 64 half + 63 of each unit."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, DIM, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    qs, ks, vs = tiles
    q_full, q_empty, k_full, k_empty, v_full, v_empty, tail, tables_full = barriers
    if POSITION_ROWS + TIME_ROWS > 0:
        mbarrier.wait(tables_full.index(0), 0)
    nothing = gl.zeros([64, BLOCK], gl.float32, SCORES)
    q = qs.index(half)
    used = 0
    for at in range(first_unit, last_unit):
        start, unit_first, rows, keys, low, high, own_low, own_high, full_from, full_to = record(records, at)
        of_interval, count = tiles_of(low, high, own_low, own_high, BLOCK)
        mine = unit_first + 64 * half
        query = mine + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
        begin, end = interval_of(intervals, width, False, start, query)
        placed = row_places(places, start + mine, SCORES, POSITION_ROWS, TIME_ROWS)
        row = mine + gl.arange(0, 64, layout=gl.SliceLayout(1, SUMS))
        scale = gl.load(scale_data + start + row, mask=row < keys, other=0.0)
        acc = gl.zeros([64, DIM], gl.float32, SUMS)
        mbarrier.wait(q_full.index(0), (at - first_unit) & 1)
        slot = used % STAGES
        mbarrier.wait(k_full.index(slot), (used // STAGES) & 1)
        token = warpgroup_mma(q, ks.index(slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(0, [token])
        mbarrier.arrive(k_empty.index(slot))
        first = tile_first(0, low, own_low, of_interval, BLOCK)
        weight = weights(
            scores,
            0,
            first,
            of_interval,
            full_from,
            full_to,
            begin,
            end,
            intervals,
            width,
            start,
            mine,
            half_alpha,
            placed,
            tables,
            tables_full.index(0),
            places,
            BLOCK,
            SCORES,
            OPERAND,
            POSITION_ROWS,
            TIME_ROWS,
            REACH,
            BUCKETS,
        )
        mbarrier.wait(k_full.index((used + 1) % STAGES), ((used + 1) // STAGES) & 1, pred=count > 1)
        for t in range(1, count):
            now = used + t
            slot = now % STAGES
            before = (now - 1) % STAGES
            before_phase = ((now - 1) // STAGES) & 1
            token = warpgroup_mma(q, ks.index(slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(before), before_phase)
            sums = warpgroup_mma(weight, vs.index(before), acc, is_async=True)
            scores = warpgroup_mma_wait(1, [token])
            mbarrier.arrive(k_empty.index(slot))
            first = tile_first(t, low, own_low, of_interval, BLOCK)
            following = weights(
                scores,
                t,
                first,
                of_interval,
                full_from,
                full_to,
                begin,
                end,
                intervals,
                width,
                start,
                mine,
                half_alpha,
                placed,
                tables,
                tables_full.index(0),
                places,
                BLOCK,
                SCORES,
                OPERAND,
                POSITION_ROWS,
                TIME_ROWS,
                REACH,
                BUCKETS,
            )
            # A block boundary: ptxas would move the SiLU below the wait for the product that it hides behind.
            mbarrier.wait(k_full.index((now + 1) % STAGES), ((now + 1) // STAGES) & 1, pred=t + 1 < count)
            acc, _, weight = warpgroup_mma_wait(0, [sums, weight, following])
            mbarrier.arrive(v_empty.index(before))
        # Where the tables leave no room for the output's conversion, it passes through the queries' place.
        THROUGH: gl.constexpr = DIM == 256 and POSITION_ROWS + TIME_ROWS > 0
        if not THROUGH:
            mbarrier.arrive(q_empty.index(0))
        used += count
        slot = (used - 1) % STAGES
        mbarrier.wait(v_full.index(slot), ((used - 1) // STAGES) & 1)
        sums = warpgroup_mma(weight, vs.index(slot), acc, is_async=True)
        acc, _ = warpgroup_mma_wait(0, [sums, weight])
        mbarrier.arrive(v_empty.index(slot))
        if THROUGH:
            store_through(q, out_data, out_token, out_column, start, mine, rows, keys, acc * scale[:, None], DIM)
            fence_async_shared()
            together()
            mbarrier.arrive(q_empty.index(0))
        else:
            store_rows(out_data, out_token, out_column, start, mine, rows, keys, acc * scale[:, None], DIM)


@gluon.jit(do_not_specialize=["width"])
def gluon_forward_kernel(
    q_desc, k_desc, v_desc, out_data, intervals, width, scale_data, records, heads, half_alpha,
    q_head, k_head, v_head, out_token, out_head, position_table, time_table, positions, times,
    DIM: gl.constexpr, POSITION_ROWS: gl.constexpr, TIME_ROWS: gl.constexpr, REACH: gl.constexpr,
    BUCKETS: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr, LOADER: gl.constexpr,
):  # fmt: skip
    """out = scale * (silu(alpha q k^T + bias) * visible) v, for one head of the units of a pair of records."""
    pair = gl.program_id(0) // heads
    head = gl.program_id(0) % heads
    first_unit = 2 * pair
    last_unit = first_unit + gl.load(records + first_unit * COLUMNS)
    qs = gl.allocate_shared_memory(gl.bfloat16, [2, 64, DIM], q_desc.layout)
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK, DIM], k_desc.layout)
    vs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK, DIM], v_desc.layout)
    barriers = (
        new_barriers(1, 1), new_barriers(1, 2), new_barriers(STAGES, 1), new_barriers(STAGES, 2), new_barriers(STAGES, 1),
        new_barriers(STAGES, 2), new_barriers(1, 1), new_barriers(1, 1),
    )  # fmt: skip
    tiles = (qs, ks, vs)
    tables = new_tables(POSITION_ROWS, TIME_ROWS)
    given = (position_table, time_table, heads)
    places = (positions, times)
    fence_async_shared()
    column = head * out_head
    gl.warp_specialize(
        [
            (compute, (0, tiles, barriers, records, first_unit, last_unit, intervals, width, scale_data, out_data,
                       out_token, column, half_alpha, tables, places, BLOCK, STAGES, DIM, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS)),
            (compute, (1, tiles, barriers, records, first_unit, last_unit, intervals, width, scale_data, out_data,
                       out_token, column, half_alpha, tables, places, BLOCK, STAGES, DIM, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS)),
            (load, (q_desc, k_desc, v_desc, tiles, barriers, records, first_unit, last_unit, head * q_head, head * k_head,
                    head * v_head, tables, given, head, BLOCK, STAGES, DIM, POSITION_ROWS, TIME_ROWS, REACH, BUCKETS)),
        ],
        [4, 4],
        [REGISTERS, LOADER],
    )  # fmt: skip
