"""Launches of the kernels that plan a batch's programs, for what compiles them without running them."""

from __future__ import annotations

import torch

from genrank.kernels.attention import IntervalMask
from genrank.kernels.attention.plan import make_plan
from genrank.kernels.launch import Launch, recording
from genrank.kernels.spans import make_spans
from genrank.kernels.spans.plan import make_plan as make_span_plan


def plan_launches(offsets: torch.dtype, device: str = "cpu") -> list[Launch]:
    """Of a batch's programs for attention."""
    bounds = torch.zeros(2, 256, dtype=torch.int32, device=device)
    starts = torch.tensor([0, 256], dtype=offsets, device=device)
    with recording() as launches:
        make_plan(IntervalMask(starts, starts, None, *bounds), 256)
    return launches


def span_plan_launches(offsets: torch.dtype, count: int, device: str = "cpu") -> list[Launch]:
    """Of a batch's programs for span attention."""
    at = torch.arange(256, device=device)
    starts = torch.tensor([0, 256], dtype=offsets, device=device)
    with recording() as launches:
        make_span_plan(make_spans(starts, starts, [(at * 0, at)] * count), 256)
    return launches
