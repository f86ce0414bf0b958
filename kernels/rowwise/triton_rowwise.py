"""The row-wise optimisers' kernel: one pass over each touched row."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING


@triton.jit(do_not_specialize=VARYING)
def rowwise_kernel(
    table, mean, state, rows, order, grads, count, dim, lr, eps, beta1, beta2, correction1, correction2, weight_decay,
    ADAM: tl.constexpr, WIDTH: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """One touched row a program: sum its gradients, in order, and update it. `rows` is sorted; a program that is not
    at the first of equal rows has nothing to do."""
    first = tl.program_id(0)
    row = tl.load(rows + first)
    if tl.load(rows + first - 1, mask=first > 0, other=-1) == row:
        return
    column = tl.arange(0, WIDTH)
    inside = column < dim
    total = tl.zeros([WIDTH], dtype=tl.float32)
    start = first
    more = 1
    while more > 0:
        at = start + tl.arange(0, PIECE)
        same = (at < count) & (tl.load(rows + at, mask=at < count, other=-1) == row)
        source = tl.load(order + at, mask=same, other=0)
        grad = tl.load(grads + source[:, None] * dim + column[None, :], mask=same[:, None] & inside[None, :], other=0.0)
        total += tl.sum(grad.to(tl.float32), 0)
        more = tl.min(same.to(tl.int32), 0)
        start += PIECE
    square = tl.sum(total * total, 0) / dim
    at = table + row * dim + column
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
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
