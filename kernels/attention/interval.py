"""Which query sees which keys and what its row is divided by, and plans of work that are made once per batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from genrank import environment

Divisor = Literal["length", "visible"] | int

Made = TypeVar("Made")


class IntervalMask(NamedTuple):
    """Which query of which sample sees which keys: those of `[begin, end)` of its sample, and its own key."""

    q_offsets: Tensor
    """int32 or int64 [B+1]: sample b owns queries `q_offsets[b]:q_offsets[b+1]`."""
    k_offsets: Tensor
    """[B+1] of the keys, of the same dtype."""
    q_positions: Tensor | None
    """int32 [Tq], the index of each query's own key in its sample's keys; None: the queries are the keys, in order."""
    begin: Tensor
    end: Tensor
    """int32 [Tq], local to the sample's keys."""


class Mask(Protocol):
    """A tuple of tensors that say which query sees which keys: `IntervalMask`, and others of which plans are made."""

    @property
    def begin(self) -> Tensor:
        """What the plans live as long as."""

    def __iter__(self) -> Iterator[Tensor | None]:
        """All of its tensors."""


_plans: Any = WeakIdKeyDictionary()


def planned(mask: Mask, key: Hashable, make: Callable[[], Made]) -> Made:
    """`make()`, made once for this `key` while the same tensors live unchanged: all layers, forward and backward,
    share it.
    """
    # What a CUDA graph captures must make its own plan: replayed, it makes it again from what the tensors then hold.
    key = (key, mask.begin.is_cuda and torch.cuda.is_current_stream_capturing())
    tensors = [t for t in mask if t is not None]
    versions = [-1 if t.is_inference() else t._version for t in tensors]
    known = _plans.get(mask.begin)
    if known is not None:
        references, seen, plans = known
        same = len(references) == len(tensors) and all(r() is t for r, t in zip(references, tensors, strict=True))
        if not same or seen != versions:
            known = None
    if known is None:
        plans = {}
        _plans[mask.begin] = ([weakref.ref(t) for t in tensors], versions, plans)
    if key not in plans:
        plans[key] = make()
    made: Made = plans[key]
    return made


def check_mask(mask: IntervalMask, key_tokens: int) -> None:
    """Raises ValueError, naming the first wrong token, for intervals, positions or offsets that leave their sample.

    Always run on CPU, where it costs little; on GPU it waits for the device, so only `GENRANK_KERNELS_CHECK=1` asks for
    it. Unchecked, the kernels clamp intervals and positions to their sample: a wrong one never reads another's tokens.
    """
    for name, offsets, tokens in (("q", mask.q_offsets, len(mask.begin)), ("k", mask.k_offsets, key_tokens)):
        wrong = len(offsets) == 0 or int(offsets[0]) != 0 or int(offsets[-1]) != tokens
        if wrong or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(f"{name} offsets must rise from 0 to {tokens}, the number of {name} tokens")
    lengths = torch.repeat_interleave(mask.k_offsets.diff(), mask.q_offsets.diff())
    begin, end = mask.begin, mask.end
    outside = (begin < end) & ((begin < 0) | (end > lengths))
    if bool(outside.any()):
        at = int(outside.int().argmax())
        raise ValueError(
            f"token {at} sees keys [{int(begin[at])}, {int(end[at])}) of its sample, which has {int(lengths[at])}; "
            "intervals are local"
        )
    if mask.q_positions is not None:
        misplaced = (mask.q_positions < 0) | (mask.q_positions >= lengths)
        if bool(misplaced.any()):
            at = int(misplaced.int().argmax())
            raise ValueError(
                f"q_positions[{at}] is {int(mask.q_positions[at])}, but its sample has {int(lengths[at])} keys"
            )


def check_if_requested(mask: IntervalMask, key_tokens: int) -> None:
    """`check_mask`, once per batch, under `GENRANK_KERNELS_CHECK=1`."""
    if environment.KERNELS_CHECK.is_set_to("1"):
        planned(mask, ("checked", key_tokens), lambda: check_mask(mask, key_tokens))


def local_positions(offsets: Tensor, length: int) -> Tensor:
    """int32 [T]: each token's index in its own sample."""
    index = torch.arange(length, device=offsets.device, dtype=torch.int32)
    sample = torch.searchsorted(offsets, index.to(offsets.dtype), right=True) - 1
    return index - offsets[sample].to(torch.int32)


def asked_by(mask: IntervalMask, rows: Tensor) -> IntervalMask:
    """The mask with an empty interval for each query but those of `rows` ([R] int64)."""
    asks = torch.zeros_like(mask.begin, dtype=torch.bool).index_fill_(0, rows, True)
    return mask._replace(begin=mask.begin * asks, end=mask.end * asks)


def queries_of(mask: IntervalMask, rows: Tensor) -> IntervalMask:
    """The mask of these queries alone ([R] int64, ascending), of one whose queries are its keys.

    Raises ValueError on CPU for rows that don't ascend.
    """
    if rows.device.type == "cpu" and not torch.compiler.is_compiling() and bool((rows.diff() <= 0).any()):
        raise ValueError("rows must ascend, each at most once: queries are taken sample by sample")
    offsets = mask.k_offsets
    q_offsets = torch.searchsorted(rows, offsets.to(rows.dtype)).to(offsets.dtype)
    sample = torch.searchsorted(offsets, rows.to(offsets.dtype), right=True) - 1
    positions = (rows - offsets[sample]).to(torch.int32)
    return IntervalMask(q_offsets, offsets, positions, mask.begin[rows], mask.end[rows])


def row_scale(divisor: Divisor, mask: IntervalMask) -> Tensor:
    """float32 [Tq]: `1/n` of each query. `n >= 1`, because a query sees itself. Found once per batch; a compiler finds common parts itself.

    Raises: ValueError for a divisor that is neither "length", "visible" nor a positive integer.
    """
    if torch.compiler.is_compiling():
        return _row_scale(divisor, mask)
    return planned(mask, ("scale", divisor), lambda: _row_scale(divisor, mask))


def _row_scale(divisor: Divisor, mask: IntervalMask) -> Tensor:
    q_offsets, k_offsets, q_positions, begin, end = mask
    if divisor == "visible":
        if q_positions is None:
            q_positions = local_positions(q_offsets, begin.shape[0])
        seen = (end - begin).clamp(min=0)
        outside = (q_positions < begin) | (q_positions >= end)
        return 1.0 / (seen + outside).float()
    if divisor == "length":
        index = torch.arange(begin.shape[0], device=begin.device, dtype=q_offsets.dtype)
        # Wrong offsets must not fail here, without a reason; the plan names them.
        sample = (torch.searchsorted(q_offsets, index, right=True) - 1).clamp(0, max(q_offsets.shape[0] - 2, 0))
        return 1.0 / (k_offsets[1:] - k_offsets[:-1]).float()[sample]
    if isinstance(divisor, bool) or not isinstance(divisor, int) or divisor < 1:
        raise ValueError(f"divisor must be 'length', 'visible' or a positive integer, got {divisor!r}")
    return torch.full(begin.shape, 1.0 / divisor, dtype=torch.float32, device=begin.device)
