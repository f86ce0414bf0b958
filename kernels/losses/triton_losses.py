"""Losses of all tasks, elementwise: their sums, or their gradients by the logits."""
# ruff: noqa: RUF005  Triton joins tuples by +, and cannot unpack them.

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING

POINTERS = ("logits", "targets", "weights")
"""Rows of matrices, or tensors: whether one begins at a multiple of 16 bytes differs from batch to batch."""


@triton.jit
def log1p_of_fraction(x):
    """log(1 + x) of x in [0, 1]: 2 atanh(x / (2 + x)), whose series ends below float32's precision. The hardware's logarithm loses small x."""
    z = x / (2.0 + x)
    s = z * z
    series = 1 / 11 + s * (1 / 13 + s * (1 / 15 + s * (1 / 17)))
    return 2.0 * z * (1.0 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * (1 / 9 + s * series)))))


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=POINTERS)
def losses_kernel(
    logits, targets, weights, upstream, out, count,
    SETS: tl.constexpr, TASKS: tl.constexpr, GIVEN: tl.constexpr, POSITIVE: tl.constexpr, BACK: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """STRIP candidates of all tasks: `out` [strips, TASKS], sums of the first set's losses; or BACK [SETS, TASKS, count], the gradients of every
    set's, of which `upstream` [TASKS] are the sums'. The first len(GIVEN) tasks are binary, given the task GIVEN or (-1) nothing. A tuple holds a
    value a task."""
    strip = tl.program_id(0).to(tl.int64)
    at = strip * STRIP + tl.arange(0, STRIP)
    there = at < count
    far = count.to(tl.int64)
    labels = ()
    scales = ()
    for task in tl.static_range(TASKS):
        weight = tl.load(weights[task] + at, mask=there, other=0.0)
        # An immature label may hold anything, NaN too.
        mature = weight > 0
        labels = labels + (tl.load(targets[task] + at, mask=mature, other=0.0),)
        weight = tl.where(mature, weight, 0.0)
        if BACK:
            weight *= tl.load(upstream + task)
        scales = scales + (weight,)
    for which in tl.static_range(SETS):
        up = ()  # sigmoid of the task's own logit, and of its negative
        down = ()
        own_no = ()
        yes = ()  # log p and log(1 - p), the condition's p multiplied in
        no = ()
        of_yes = ()  # their weights in the loss
        of_no = ()
        for task in tl.static_range(len(GIVEN)):
            x = tl.load(logits[which * TASKS + task] + at, mask=there, other=0.0)
            small = tl.exp(-tl.abs(x))
            tail = log1p_of_fraction(small)
            larger = 1.0 / (1.0 + small)
            up = up + (tl.where(x >= 0, larger, small * larger),)
            down = down + (tl.where(x >= 0, small * larger, larger),)
            own_no = own_no + (tl.minimum(-x, 0.0) - tail,)
            if GIVEN[task] >= 0:  # 1 - ab = (1 - a) + a(1 - b)
                first = no[GIVEN[task]]
                second = yes[GIVEN[task]] + own_no[task]
                more = log1p_of_fraction(tl.exp(-tl.abs(first - second)))
                yes = yes + (tl.minimum(x, 0.0) - tail + yes[GIVEN[task]],)
                no = no + (tl.maximum(first, second) + more,)
            else:
                yes = yes + (tl.minimum(x, 0.0) - tail,)
                no = no + (own_no[task],)
            of_yes = of_yes + (labels[task] * POSITIVE[task] * scales[task],)
            of_no = of_no + ((1.0 - labels[task]) * scales[task],)
            if not BACK:
                each = -(of_yes[task] * yes[task] + of_no[task] * no[task])
                tl.store(out + strip * TASKS + task, tl.sum(tl.where(scales[task] > 0, each, 0.0), 0))
        if BACK:
            for task in tl.static_range(len(GIVEN) - 1, -1, -1):
                if GIVEN[task] >= 0:
                    share = tl.exp(yes[GIVEN[task]] + own_no[task] - no[task])
                    own = of_no[task] * share
                    of_condition = of_no[GIVEN[task]] + (of_no[task] - own)
                    of_no = (
                        of_no[: GIVEN[task]]
                        + (of_condition,)
                        + of_no[GIVEN[task] + 1 : task]
                        + (own,)
                        + of_no[task + 1 :]
                    )
                    of_condition = of_yes[GIVEN[task]] + of_yes[task] + own
                    of_yes = of_yes[: GIVEN[task]] + (of_condition,) + of_yes[GIVEN[task] + 1 :]
            for task in tl.static_range(len(GIVEN)):
                slope = of_no[task] * up[task] - of_yes[task] * down[task]
                tl.store(out + (which * TASKS + task) * far + at, slope, mask=there)
        for task in tl.static_range(len(GIVEN), TASKS):
            x = tl.load(logits[which * TASKS + task] + at, mask=there, other=0.0)
            slope = (x - labels[task]) * scales[task]
            if BACK:
                tl.store(out + (which * TASKS + task) * far + at, slope, mask=there)
            else:
                each = tl.where(scales[task] > 0, 0.5 * (x - labels[task]) * slope, 0.0)
                tl.store(out + strip * TASKS + task, tl.sum(each, 0))
