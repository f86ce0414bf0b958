"""The row-wise optimisers' kernel: gradients of equal rows are summed in pieces of bounded length, and a row whose sum is whole is updated.

A popular row may have a tenth of a batch's gradients; summed by one program, it is what the step waits for. So sorted entries are
taken in chunks, and a program sums at most one chunk's share of a row. Rows that lie in one chunk are updated at once. Of one that
crosses a chunk's end each share is kept, two places a chunk (what came in from the left, what goes on to the right), in order;
these, a 64th as many, are the entries of the next pass of the same kernel, until one chunk holds them all. Which program adds what
never depends on timing: sums are the same to the bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING


@triton.jit(do_not_specialize=(*VARYING, "row_base", "entry_base"))
def rowwise_kernel(
    table, mean, state, rows, order, grads, shares, share_sums, count, dim, row_base, entry_base,
    lr, eps, beta1, beta2, correction1, correction2, weight_decay,
    ADAM: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """A program an entry; it has something to do where a chunk or a run of equal rows begins.

    `rows`: [count], equal ones side by side, row_base more than the table's; below 0: nothing. In the first pass (FIRST) entry i's gradient is
    grads[order[i] - entry_base], later grads[i]. `shares`, `share_sums`: rows [2 chunks] and sums [2 chunks, dim] float32 of the next pass.
    """
    first = tl.program_id(0)
    row = tl.load(rows + first)
    before = tl.load(rows + first - 1, mask=first > 0, other=-1)
    place = first % CHUNK
    if (place != 0) & (before == row):
        return
    column = tl.arange(0, WIDTH)
    inside = column < dim
    end = tl.minimum(first - place + CHUNK, count)
    total = tl.zeros([WIDTH], dtype=tl.float32)
    stop = first
    more = 1
    while more > 0:
        at = stop + tl.arange(0, PIECE)
        same = (at < end) & (tl.load(rows + at, mask=at < end, other=-1) == row)
        source = tl.load(order + at, mask=same, other=entry_base) - entry_base if FIRST else at.to(tl.int64)
        some = same & (row >= 0)
        grad = tl.load(grads + source[:, None] * dim + column[None, :], mask=some[:, None] & inside[None, :], other=0.0)
        total += tl.sum(grad.to(tl.float32), 0)
        found = tl.sum(same.to(tl.int32), 0)
        stop += found
        more = found // PIECE
    after = tl.load(rows + stop, mask=stop < count, other=-1)
    whole = (before != row) & ((after != row) | (stop == count))
    chunk = first // CHUNK
    kept = tl.where(whole, -1, row)
    if place == 0:
        tl.store(shares + 2 * chunk, kept)
    if stop == end:
        tl.store(shares + 2 * chunk + 1, kept)
    if whole == 0:
        # One that fills its chunk has its sum in the first place and nothing in the second, so that its shares lie side by side.
        right = chunk * 2 + tl.where(place == 0, 0, 1)
        tl.store(share_sums + right * dim + column, total, mask=inside)
        nothing = tl.zeros([WIDTH], dtype=tl.float32)
        tl.store(share_sums + (2 * chunk + 1) * dim + column, nothing, mask=inside & (place == 0) & (stop == end))
    if (whole == 0) | (row < 0):
        return
    row = row.to(tl.int64) - row_base
    at = table + row * dim + column
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if ADAM == 0:
        total += weight_decay * value
    square = tl.sum(total * total, 0) / dim
    if ADAM:
        m = beta1 * tl.load(mean + row * dim + column, mask=inside, other=0.0) + (1.0 - beta1) * total
        v = beta2 * tl.load(state + row) + (1.0 - beta2) * square
        tl.store(mean + row * dim + column, m, mask=inside)
        tl.store(state + row, v)
        value -= lr * (m / correction1 / (tl.sqrt(v / correction2) + eps) + weight_decay * value)
    else:
        v = tl.load(state + row) + square
        tl.store(state + row, v)
        value -= lr * total / (tl.sqrt(v) + eps)
    tl.store(at, value.to(table.dtype.element_ty), mask=inside)
