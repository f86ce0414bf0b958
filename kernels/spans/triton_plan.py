"""What the plan of span attention's programs needs of each sample, in one launch; its units are `kernels.attention.triton_plan.units_kernel`'s."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.attention.triton_plan import COLUMNS, FAR, place_of


@triton.jit(do_not_specialize=["tokens", "places", "batch"])
def span_summary_kernel(
    begin_data, end_data, q_offsets, summary, hull, seen, pairs, chunk_starts, tokens, places, batch,
    SPANS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Of one sample: its chunks' `Plan.summary`, and over all spans their least begin and greatest end (`hull` [places, COLUMNS]) and visible
    pairs (`seen`); its pairs; and where its chunks begin (`chunk_starts`, without a sum over samples: `place_of`)."""
    sample = tl.program_id(0)
    start = tl.load(q_offsets + sample).to(tl.int64)
    rows = tl.load(q_offsets + sample + 1).to(tl.int64) - start
    place = place_of(q_offsets, sample, CHUNK)
    tl.store(chunk_starts + 1 + sample, place)
    if sample == 0:
        tl.store(chunk_starts, places)
    if sample == batch - 1:
        tl.store(chunk_starts + 1 + batch, place_of(q_offsets, batch, CHUNK))
    total = tl.zeros([1], dtype=tl.int64)
    for first in range(0, tl.cdiv(rows, CHUNK), CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        row = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
        real = (row < rows) & (start + row >= 0) & (start + row < tokens)
        at = place + chunk
        there = (chunk * CHUNK < rows) & (at >= 0) & (at < places)
        counts = tl.zeros([CHUNKS], dtype=tl.int64)
        least = tl.full([CHUNKS], FAR, dtype=tl.int32)
        greatest = tl.zeros([CHUNKS], dtype=tl.int32)
        for span in tl.static_range(SPANS):
            of = span * tokens.to(tl.int64) + start + row
            begin = tl.load(begin_data + of, mask=real, other=0)
            end = tl.load(end_data + of, mask=real, other=0)
            sees = real & (begin < end)
            low = tl.min(tl.where(sees, begin, FAR), 1)
            high = tl.max(tl.where(sees, end, 0), 1)
            tl.store(summary + 2 * span * places.to(tl.int64) + at, low, mask=there)
            tl.store(summary + (2 * span + 1) * places.to(tl.int64) + at, high, mask=there)
            counts += tl.sum(tl.where(sees, end - begin, 0).to(tl.int64), 1)
            least = tl.minimum(least, low)
            greatest = tl.maximum(greatest, high)
        tl.store(hull + at * COLUMNS, least, mask=there)
        tl.store(hull + at * COLUMNS + 1, greatest, mask=there)
        tl.store(seen + at, counts, mask=there)
        total += tl.sum(counts, 0)
    tl.store(pairs + sample + tl.arange(0, 1), total)
