"""Which query sees which keys, and plans of work that are made once per batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from genrank import environment

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
    # What a CUDA graph captures must make its own plan: replayed, it makes it again from what the tensors then hold.
    key = (key, problem.begin.is_cuda and torch.cuda.is_current_stream_capturing())
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


def check_problem(problem: Problem, key_tokens: int) -> None:
    """Raises ValueError, naming the first wrong token, for intervals, positions or offsets that leave their sample.

    Always run on CPU, where it costs little; on GPU it waits for the device, so only `GENRANK_KERNELS_CHECK=1` asks for
    it. Unchecked, the kernels clamp intervals and positions to their sample: a wrong one never reads another's tokens.
    """
    for name, offsets, tokens in (("q", problem.q_offsets, len(problem.begin)), ("k", problem.k_offsets, key_tokens)):
        wrong = len(offsets) == 0 or int(offsets[0]) != 0 or int(offsets[-1]) != tokens
        if wrong or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(f"{name} offsets must rise from 0 to {tokens}, the number of {name} tokens")
    lengths = torch.repeat_interleave(problem.k_offsets.diff(), problem.q_offsets.diff())
    begin, end = problem.begin, problem.end
    outside = (begin < end) & ((begin < 0) | (end > lengths))
    if bool(outside.any()):
        at = int(outside.int().argmax())
        raise ValueError(
            f"token {at} sees keys [{int(begin[at])}, {int(end[at])}) of its sample, which has {int(lengths[at])}; "
            "intervals are local"
        )
    if problem.q_positions is not None:
        misplaced = (problem.q_positions < 0) | (problem.q_positions >= lengths)
        if bool(misplaced.any()):
            at = int(misplaced.int().argmax())
            raise ValueError(
                f"q_positions[{at}] is {int(problem.q_positions[at])}, but its sample has {int(lengths[at])} keys"
            )


def check_if_asked(problem: Problem, key_tokens: int) -> None:
    """`check_problem`, once per batch, under `GENRANK_KERNELS_CHECK=1`."""
    if environment.KERNELS_CHECK.is_set_to("1"):
        planned(problem, ("checked", key_tokens), lambda: check_problem(problem, key_tokens))
