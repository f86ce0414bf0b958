"""What clocks show at a moment, on the device that holds the moments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrank.schemas.local_days import LocalDays


class LocalTime(nn.Module):
    """Epoch ms -> ms since the clocks of a place showed 1970-01-01 00:00: int64 [...] -> int64 [...].

    Holds the transitions of a time zone as constants, which are no part of a checkpoint; a fixed offset has none.
    """

    moments: Tensor
    offsets: Tensor

    def __init__(self, days: LocalDays) -> None:
        super().__init__()
        moments, offsets = days.transitions
        self.fixed = int(offsets[0]) if not len(moments) else None
        self.register_buffer("moments", torch.from_numpy(moments.copy()), persistent=False)
        self.register_buffer("offsets", torch.from_numpy(offsets.copy()), persistent=False)

    def forward(self, ms: Tensor) -> Tensor:
        """The local time of each moment."""
        if self.fixed is not None:
            return ms + self.fixed
        return ms + self.offsets[torch.bucketize(ms, self.moments, right=True)]
