"""What one call of attention is given beside q, k and v, in one value: as the definition and all implementations take it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from genrank.kernels.attention.bias import RelativeBias
from genrank.kernels.attention.interval import IntervalMask


class AttentionCall(NamedTuple):
    """What one call of the op is given beside q, k and v."""

    mask: IntervalMask
    scale: Tensor
    """float32 [Tq]: `1/n` of each query (`row_scale`)."""
    bias: RelativeBias
    alpha: float
    """Scale of the scores."""
    dropout: float = 0.0
    seed: int = 0
    """Of the dropout."""
    same_scale: bool = False
    """All queries of a sample have one `scale`."""
    max_length: int = -1
    """Tokens of the longest sample, -1 if not known."""

    def flat(self) -> tuple[Any, ...]:
        """The arguments of PyTorch's op, in the order of `FLAT_SCHEMA`."""
        return (*self.mask, self.scale, *self.bias, *self[3:])

    @classmethod
    def of(cls, flat: tuple[Any, ...]) -> AttentionCall:
        """The inverse of `flat`."""
        return cls(IntervalMask(*flat[:5]), flat[5], RelativeBias(*flat[6:10]), *flat[10:])


# SymInt, not int: a compiled encoder would be compiled again for each batch's longest sample and dropout seed.
FLAT_SCHEMA = (
    "Tensor q_offsets, Tensor k_offsets, Tensor? q_positions, Tensor begin, Tensor end, Tensor scale, "
    "Tensor? position_table, Tensor? time_table, Tensor? timestamps, Tensor? positions, "
    "float alpha, float dropout, SymInt seed, bool same_scale, SymInt max_length"
)
TENSORS = 10
"""How many of these are tensors: the first ones."""
