"""Rows of tables and numbers to the matrices of token groups, and the matrices' gradients to gradients of rows: every feature in one launch.

With NORM features come at one scale (`tokenization.feature_norm`): a vector over the root of its mean square, a number less its mean over
its deviation. What backward needs of it is the vector as it is written and one number a row, so that no row is read again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING
from genrank.kernels.lookups.triton_rows import column, count_up_to


@triton.jit(do_not_specialize=VARYING)
def vectors_kernel(
    instructions, places, weights, rows, numbers, out, inverse, eps,
    NORM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK rows of one feature: `instructions` [J, 6] as `VectorInstruction`, `places` [J, 9] of the batch as `VectorPlace`, `weights` [T]
    addresses of float32 tables. `out`: all matrices; `inverse`: of each vector 1 over its norm."""
    what, place = instructions + tl.program_id(1) * 6, places + tl.program_id(1) * 9
    count = tl.load(place)
    if tl.program_id(0).to(tl.int64) * BLOCK >= count:
        return
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    kind, dim, width = tl.load(what), tl.load(what + 4), tl.load(what + 5)
    source = tl.load(place + 2)
    columns = tl.arange(0, WIDTH)
    inside = real[:, None] & (columns < dim)[None, :]
    target = out + tl.load(place + 5) + at * width + tl.load(what + 3)
    if kind == 3:
        number = tl.load(numbers + source + at, mask=real, other=0.0)
        missing = number != number
        number = tl.where(missing, 0.0, number)
        if NORM:
            moments = column(tl.load(place + 8), tl.float32)
            number = tl.where(missing, 0.0, (number - tl.load(moments)) / tl.load(moments + 1))
        tl.store(target, number, mask=real)
        tl.store(target + 1, missing.to(tl.float32), mask=real)
    else:
        table = column(tl.load(weights + tl.load(what + 1)), tl.float32)
        vector = tl.zeros([BLOCK, WIDTH], dtype=tl.float32)
        if kind == 0:
            row = tl.load(rows + source + at, mask=real, other=0)
            vector = tl.load(table + row[:, None] * dim + columns[None, :], mask=inside, other=0.0)
        elif kind == 4:
            block = column(source, tl.float32)
            vector = tl.load(block + (at * tl.load(place + 3))[:, None] + columns[None, :], mask=inside, other=0.0)
        else:
            offsets = column(tl.load(place + 4), tl.int64)
            begin = tl.load(offsets + at, mask=real, other=0)
            length = tl.load(offsets + at + 1, mask=real, other=0) - begin
            for j in range(tl.max(length, 0)):
                some = real & (j < length)
                row = tl.load(rows + source + begin + j, mask=some, other=0)
                vector += tl.load(table + row[:, None] * dim + columns[None, :], mask=some[:, None] & inside, other=0.0)
            if kind == 2:
                vector = vector / tl.maximum(length, 1).to(tl.float32)[:, None]
        if NORM:
            root = 1.0 / tl.sqrt(tl.sum(vector * vector, 1) / dim + eps)
            tl.store(inverse + tl.load(place + 6) + at, root, mask=real)
            vector = vector * root[:, None]
        tl.store(target[:, None] + columns[None, :], vector, mask=inside)


@triton.jit(do_not_specialize=(*VARYING, "steps"))
def vectors_backward_kernel(
    instructions, places, gradients, table_grads, block_grads, out, inverse, steps,
    NORM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK gradients of one feature's entries: of the rows that it read, each by itself, or of a block. `gradients` [G, 2]: address and
    stride of each matrix's gradient, float32."""
    what, place = instructions + tl.program_id(1) * 6, places + tl.program_id(1) * 9
    entries, kind = tl.load(place + 1), tl.load(what)
    if (tl.program_id(0).to(tl.int64) * BLOCK >= entries) | (kind == 3):
        return
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < entries
    dim, width, first = tl.load(what + 4), tl.load(what + 5), tl.load(what + 3)
    group = tl.load(what + 2)
    columns = tl.arange(0, WIDTH)
    row = at
    share = tl.full([BLOCK], 1.0, dtype=tl.float32)
    if (kind == 1) | (kind == 2):
        offsets = column(tl.load(place + 4), tl.int64)
        row = count_up_to(offsets, tl.load(place) + 1, at, real, steps, True) - 1
        if kind == 2:
            length = tl.load(offsets + row + 1, mask=real, other=1) - tl.load(offsets + row, mask=real, other=0)
            share = 1.0 / tl.maximum(length, 1).to(tl.float32)
    inside = real[:, None] & (columns < dim)[None, :]
    source = column(tl.load(gradients + 2 * group), tl.float32) + row * tl.load(gradients + 2 * group + 1) + first
    grad = tl.load(source[:, None] + columns[None, :], mask=inside, other=0.0)
    if NORM:
        written = out + tl.load(place + 5) + row * width + first
        vector = tl.load(written[:, None] + columns[None, :], mask=inside, other=0.0)
        root = tl.load(inverse + tl.load(place + 6) + row, mask=real, other=0.0)
        grad = (grad - vector * (tl.sum(grad * vector, 1) / dim)[:, None]) * root[:, None]
    grad *= share[:, None]
    if kind == 4:
        stride = tl.load(place + 3)
        tl.store(block_grads + tl.load(place + 7) + (at * stride)[:, None] + columns[None, :], grad, mask=inside)
    else:
        tl.store(table_grads + tl.load(place + 7) + (at * dim)[:, None] + columns[None, :], grad, mask=inside)
