"""What the span kernels share beyond `kernels.attention.triton_tiles`: weights of a tile of pairs, and their slopes."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.attention.triton_tiles import silu, silu_and_slope

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def first_weights(half_score, visible, top, total, acc, SOFTMAX: tl.constexpr, FAST: tl.constexpr):
    """Weights of a tile of a query block in forward; for softmax in units of exp(top), to which what was summed so far is brought.
    top is finite from the start, so that no difference of infinities arises where a row sees nothing."""
    if SOFTMAX:
        exponent = tl.where(visible, half_score * (2.0 * LOG2E), float("-inf"))
        higher = tl.maximum(top, tl.max(exponent, 1))
        weight = tl.exp2(exponent - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        return weight, higher, total, acc * shrink[:, None]
    weight = silu(tl.where(visible, half_score, 0.0), FAST)
    return weight, top, total, acc


@triton.jit
def weights_and_slopes(half_score, product, visible, lse, delta, SOFTMAX: tl.constexpr, FAST: tl.constexpr):
    """Weights of a tile, and twice the gradient of its scores, given `product` = upstream . values; 0 for hidden pairs. lse (base 2)
    and delta are broadcast over the keys."""
    if SOFTMAX:
        weight = tl.where(visible, tl.exp2(half_score * (2.0 * LOG2E) - lse), 0.0)
        return weight, 2.0 * weight * (product - delta)
    weight, slope = silu_and_slope(half_score, visible, True, FAST)
    return weight, tl.fma(product, slope, product)
