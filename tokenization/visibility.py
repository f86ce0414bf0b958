"""What each token sees, as an interval and oneself: query token q sees the tokens [begin_q, end_q) of its sample, and q.

In the token order U | S | R | C every rule of the field is such an interval, because R is sorted by availability: what a
token may see of R is a prefix. A rule is a function `Layout -> (begin, end)`, both [T] int32, local to the sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

USER, HISTORY, REALTIME, CANDIDATE = range(4)
"""Token groups, as `Tokens.group_ids` and the group layer norm number them."""


@dataclass
class Layout:
    """Where the tokens of a batch lie; T tokens, one sample after another. int64, or on a GPU int32."""

    position: Tensor
    """[T]: the token's place in its sample."""
    group: Tensor
    """[T] int32: USER, HISTORY, REALTIME or CANDIDATE."""
    users: Tensor
    """[T]: user tokens of the token's sample."""
    known: Tensor
    """[T]: user and history tokens of the token's sample: all that was available before the window."""
    sees: Tensor
    """[T]: realtime tokens that were available strictly before this one was (a candidate: before its exposure).
    0 for user and history tokens."""


Rule = Callable[[Layout], tuple[Tensor, Tensor]]


def mtgr(layout: Layout) -> tuple[Tensor, Tensor]:
    """MTGR's dynamic mask (arXiv:2505.18654, section 3.3): U and S tokens see U and S; realtime tokens and candidates also
    the realtime tokens available strictly before them. No candidate sees another."""
    return _interval(torch.zeros_like(layout.position), layout.known + layout.sees)


def hstu(layout: Layout, *, contextual: bool = True, window: int = 0, full_tail: int = 0) -> tuple[Tensor, Tensor]:
    """HSTU's masks (arXiv:2402.17152; generative-recommenders' options): history is causal, candidates are targets that see
    everything available before their exposure and no other target.

    Args:
        contextual: user tokens see all user and history tokens; otherwise they're causal like the history.
        window: a token sees at most so many before it (and, once it reaches them, all user tokens if `contextual`); 0: all.
        full_tail: the last so many history tokens, realtime tokens and candidates see past the window.
    """
    end = torch.where(layout.group <= HISTORY, layout.position, layout.known + layout.sees)
    begin = torch.zeros_like(end)
    if window:
        begin = (end - window).clamp_(min=0)
        if contextual:
            begin = torch.where(begin < layout.users, 0, begin)
        if full_tail:
            begin = torch.where(end >= layout.known - full_tail, 0, begin)
    if contextual:
        user = layout.group == USER
        begin, end = torch.where(user, 0, begin), torch.where(user, layout.known, end)
    return _interval(begin, end)


causal = partial(hstu, contextual=False)
"""Strictly by order: every user and history token sees what comes before it (LONGER's and GRAB's sequences)."""


def _interval(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    return begin.to(torch.int32), end.to(torch.int32)
