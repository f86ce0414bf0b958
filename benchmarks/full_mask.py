"""mtgr-tiny under a full mask: every token sees every other of its sample, later events and rival candidates included.

    genrank train --model benchmarks/full_mask.py:FULL_MASK ...

Nobody's model: benchmarks/ablations.py shows by it what MTGR's dynamic mask prevents.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from genrank.model.encoders.mtgr import PRESETS, Mtgr, MtgrConfig
from genrank.model.registry import encoder_spec
from genrank.tokenization.visibility import Layout
from genrank.tokenization.wants import Wants


def full(layout: Layout) -> tuple[Tensor, Tensor]:
    """[0, length) of the token's sample, both [T] int32."""
    sample = torch.cumsum(layout.position == 0, 0) - 1
    length = torch.bincount(sample)
    begin = torch.zeros_like(layout.position, dtype=torch.int32)
    return begin, length[sample].to(torch.int32)


@dataclass(frozen=True)
class FullMaskConfig(MtgrConfig):
    """MTGR's fields; `visibility` is not looked at."""

    def wants(self) -> Wants:
        return dataclasses.replace(super().wants(), rule=full)


FULL_MASK = encoder_spec("mtgr-tiny, full mask", FullMaskConfig(**dataclasses.asdict(PRESETS["mtgr-tiny"])), Mtgr)
