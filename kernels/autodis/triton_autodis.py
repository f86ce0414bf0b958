"""AutoDis forward, backward, and the gradients of the parameters.

LeakyReLU is positively homogeneous: a number x > 0 has the scores x s+, another x s-, where s+ and s- are the scores of 1 and of -1 (the latter
times -1). A program computes those two, after which a value takes a softmax over its buckets, but no product with the matrix that mixes them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING


@triton.jit
def activated(lift):
    """LeakyReLU(lift * x) / x for x > 0 and for x < 0."""
    small = lift * 0.01
    return tl.where(lift > 0, lift, small), tl.where(lift < 0, lift, small)


@triton.jit
def place_of(places, number):
    """Row, buckets, dim, temperature, first parameter and first column (`layout.table`)."""
    mine = places + number * 6
    temperature = tl.load(mine + 3).to(tl.float32, bitcast=True)
    return tl.load(mine), tl.load(mine + 1), tl.load(mine + 2), temperature, tl.load(mine + 4), tl.load(mine + 5)


@triton.jit
def scores_of_one(own, buckets, temperature, H: tl.constexpr, SOURCES: tl.constexpr):
    """s+ and s-, [H] float32, of the parameters from `own` on; SOURCES rows of the mixing matrix at a time."""
    bucket = tl.arange(0, H)
    lift = tl.load(own + bucket, mask=bucket < buckets, other=0.0)
    skip = tl.load(own + buckets + buckets * buckets)
    above, below = activated(lift)
    above *= skip
    below *= skip
    for first in range(0, buckets, SOURCES):
        source = first + tl.arange(0, SOURCES)
        up, down = activated(tl.load(own + source, mask=source < buckets, other=0.0))
        real = (source < buckets)[:, None] & (bucket < buckets)[None, :]
        mixing = tl.load(own + buckets + source[:, None] * buckets + bucket[None, :], mask=real, other=0.0)
        above += tl.sum(up[:, None] * mixing, 0)
        below += tl.sum(down[:, None] * mixing, 0)
    return above / temperature, below / temperature


@triton.jit
def weights_of(values, index, real, above, below, buckets, H: tl.constexpr):
    """Of a block of values: the softmax [NUMBERS, H], the values with 0 for what is missing, and whether they are."""
    x = tl.load(values + index, mask=real, other=0.0)
    missing = x != x
    # What overflowed counts as the largest number.
    x = tl.minimum(tl.maximum(tl.where(missing, 0.0, x), -3.4028234663852886e38), 3.4028234663852886e38)
    scores = x[:, None] * tl.where((x > 0)[:, None], above[None, :], below[None, :])
    scores = tl.where((tl.arange(0, H) < buckets)[None, :], scores, float("-inf"))
    powers = tl.exp(scores - tl.max(scores, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None], x, missing


@triton.jit
def columns_of(parameters, places, H: tl.constexpr, COLUMNS: tl.constexpr, SOURCES: tl.constexpr):
    """Of this program's number and COLUMNS columns: its row of the values, its buckets, s+ and s-, the columns and which there are, where in a row of
    the output its columns begin, its meta-embeddings [H, COLUMNS], and where the vector of missing values lies."""
    row, buckets, dim, temperature, first, start = place_of(places, tl.program_id(1))
    own = parameters + first
    above, below = scores_of_one(own, buckets, temperature, H, SOURCES)
    bucket = tl.arange(0, H)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < dim
    base = own + buckets + buckets * buckets + 1
    inside = (bucket < buckets)[:, None] & there[None, :]
    vectors = tl.load(base + bucket[:, None] * dim + column[None, :], mask=inside, other=0.0)
    return row, buckets, above, below, column, there, start, vectors, base + buckets * dim


@triton.jit(do_not_specialize=VARYING)
def autodis_kernel(
    values, parameters, places, out, count, width, strip,
    H: tl.constexpr, COLUMNS: tl.constexpr, SOURCES: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """COLUMNS columns of one number's vectors for a strip of its values. values [R, count] float32, out [count, width] float32."""
    row, buckets, above, below, column, there, start, vectors, last = columns_of(
        parameters, places, H, COLUMNS, SOURCES
    )
    absent = tl.load(last + column, mask=there, other=0.0)
    mine = values + row.to(tl.int64) * count
    begin = tl.program_id(0) * strip
    end = tl.minimum(begin + strip, count)
    for at in range(begin, end, NUMBERS):
        index = at + tl.arange(0, NUMBERS)
        weights, _, missing = weights_of(mine, index, index < end, above, below, buckets, H)
        found = tl.sum(weights[:, :, None] * vectors[None, :, :], 1)
        found = tl.where(missing[:, None], absent[None, :], found)
        target = out + index.to(tl.int64)[:, None] * width + start + column[None, :]
        tl.store(target, found, mask=(index < end)[:, None] & there[None, :])


@triton.jit(do_not_specialize=VARYING)
def autodis_backward_kernel(
    grad_out, values, parameters, places, sums, count, grad_stride, strip,
    H: tl.constexpr, COLUMNS: tl.constexpr, SOURCES: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """What a strip of values and COLUMNS columns add to the gradients of s+ [H], s- [H], the meta-embeddings [H, COLUMNS] and the vector of missing
    values [COLUMNS]: a row of `sums`, by number, columns and strip. The gradients of s are sums over columns, as a softmax's are linear in its own."""
    row, buckets, above, below, column, there, start, vectors, _ = columns_of(parameters, places, H, COLUMNS, SOURCES)
    mine = values + row.to(tl.int64) * count
    begin = tl.program_id(0) * strip
    end = tl.minimum(begin + strip, count)
    of_above = tl.zeros([H], dtype=tl.float32)
    of_below = tl.zeros([H], dtype=tl.float32)
    of_vectors = tl.zeros([H, COLUMNS], dtype=tl.float32)
    of_absent = tl.zeros([COLUMNS], dtype=tl.float32)
    for at in range(begin, end, NUMBERS):
        index = at + tl.arange(0, NUMBERS)
        real = index < end
        weights, x, missing = weights_of(mine, index, real, above, below, buckets, H)
        source = grad_out + index.to(tl.int64)[:, None] * grad_stride + start + column[None, :]
        grad = tl.load(source, mask=real[:, None] & there[None, :], other=0.0).to(tl.float32)
        of_absent += tl.sum(tl.where(missing[:, None], grad, 0.0), 0)
        grad = tl.where(missing[:, None], 0.0, grad)
        of_vectors += tl.sum(weights[:, :, None] * grad[:, None, :], 0)
        of_weights = tl.sum(grad[:, None, :] * vectors[None, :, :], 2)
        of_scores = x[:, None] * weights * (of_weights - tl.sum(weights * of_weights, 1)[:, None])
        of_above += tl.sum(tl.where((x > 0)[:, None], of_scores, 0.0), 0)
        of_below += tl.sum(tl.where((x > 0)[:, None], 0.0, of_scores), 0)
    group = tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)
    target = sums + (group.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * (2 * H + (H + 1) * COLUMNS)
    bucket = tl.arange(0, H)
    tl.store(target + bucket, of_above)
    tl.store(target + H + bucket, of_below)
    cell = bucket[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(target + 2 * H + cell, of_vectors)
    tl.store(target + 2 * H + H * COLUMNS + tl.arange(0, COLUMNS), of_absent)


@triton.jit
def total_of(sums, count, stride, SIZE: tl.constexpr, ROWS: tl.constexpr):
    """[SIZE] float32: the sum of `count` rows, in order, ROWS at a time."""
    element = tl.arange(0, SIZE)
    total = tl.zeros([SIZE], dtype=tl.float32)
    for at in range(0, count, ROWS):
        row = at + tl.arange(0, ROWS)
        found = tl.load(
            sums + row.to(tl.int64)[:, None] * stride + element[None, :], mask=(row < count)[:, None], other=0.0
        )
        total += tl.sum(found, 0)
    return total


@triton.jit(do_not_specialize=VARYING)
def autodis_parameters_kernel(
    sums, parameters, places, grads, count, groups,
    H: tl.constexpr, COLUMNS: tl.constexpr, SOURCES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of one number's parameters, laid out as these are, of `count` strips' sums by each of `groups` blocks of columns: the first program
    those of lift, mixing and skip, each other those of its columns of the vectors."""
    _, buckets, dim, temperature, first, _ = place_of(places, tl.program_id(0))
    own = parameters + first
    into = grads + first
    bucket = tl.arange(0, H)
    stride = 2 * H + (H + 1) * COLUMNS
    mine = sums + (tl.program_id(0) * groups).to(tl.int64) * count * stride
    block = tl.program_id(1) - 1
    if block < 0:
        of_above = total_of(mine, groups * count, stride, H, ROWS) / temperature
        of_below = total_of(mine + H, groups * count, stride, H, ROWS) / temperature
        skip = tl.load(own + buckets + buckets * buckets)
        above, below = activated(tl.load(own + bucket, mask=bucket < buckets, other=0.0))
        tl.store(into + buckets + buckets * buckets, tl.sum(above * of_above + below * of_below, 0))
        for begin in range(0, buckets, SOURCES):
            source = begin + tl.arange(0, SOURCES)
            lift = tl.load(own + source, mask=source < buckets, other=0.0)
            up, down = activated(lift)
            cell = buckets + source[:, None] * buckets + bucket[None, :]
            real = (source < buckets)[:, None] & (bucket < buckets)[None, :]
            mixing = tl.load(own + cell, mask=real, other=0.0)
            tl.store(into + cell, up[:, None] * of_above[None, :] + down[:, None] * of_below[None, :], mask=real)
            mixing += tl.where(source[:, None] == bucket[None, :], skip, 0.0)
            of_up = tl.sum(mixing * of_above[None, :], 1)
            of_down = tl.sum(mixing * of_below[None, :], 1)
            of_lift = tl.where(lift > 0, of_up, of_up * 0.01) + tl.where(lift < 0, of_down, of_down * 0.01)
            tl.store(into + source, of_lift, mask=source < buckets)
    else:
        mine += block.to(tl.int64) * count * stride + 2 * H
        into += buckets + buckets * buckets + 1
        element = tl.arange(0, H * COLUMNS)
        column = block * COLUMNS + element % COLUMNS
        inside = (element // COLUMNS < buckets) & (column < dim)
        of_vectors = total_of(mine, count, stride, H * COLUMNS, ROWS)
        tl.store(into + (element // COLUMNS) * dim + column, of_vectors, mask=inside)
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        of_absent = total_of(mine + H * COLUMNS, count, stride, COLUMNS, ROWS)
        tl.store(into + buckets * dim + column, of_absent, mask=column < dim)
