"""Which query sees which keys, and plans of work that are made once per batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

Made = TypeVar("Made")


class Problem(NamedTuple):
    """Which query of which sample sees which keys; see `kernels.attention.delta_attention`."""

    q_offsets: Tensor
    k_offsets: Tensor
    q_positions: Tensor | None
    """None: the queries are the keys, in order."""
    begin: Tensor
    end: Tensor


_plans: WeakIdKeyDictionary = WeakIdKeyDictionary()


def planned(problem: Problem, key: Hashable, make: Callable[[], Made]) -> Made:
    """`make()`, made once for this `key` while the same tensors live unchanged: all layers, forward and backward,
    share it.
    """
    tensors = [t for t in problem if t is not None]
    versions = [-1 if t.is_inference() else t._version for t in tensors]
    known = _plans.get(problem.begin)
    if known is not None:
        references, seen, plans = known
        same = len(references) == len(tensors) and all(r() is t for r, t in zip(references, tensors, strict=True))
        if not same or seen != versions:
            known = None
    if known is None:
        plans = {}
        _plans[problem.begin] = ([weakref.ref(t) for t in tensors], versions, plans)
    if key not in plans:
        plans[key] = make()
    made: Made = plans[key]
    return made
