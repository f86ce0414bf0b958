"""Ranks that keep replicas of the dynamic vocabularies, and how each learns what all of them saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Replicas(NamedTuple):
    """The ranks of a run of several."""

    group: dist.ProcessGroup
    """What exchanges tensors on the vocabularies' device."""
    host: dist.ProcessGroup
    """What exchanges numbers that the hosts know, past their devices: these are not waited for, only the other hosts."""

    @classmethod
    def here(cls) -> Replicas | None:
        """Of all processes; None where this one is alone. Every rank makes it, at the same point."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return None
        group = dist.group.WORLD
        assert group is not None
        return cls(group, group if dist.get_backend() == "gloo" else dist.new_group(backend="gloo"))

    def join(self, ids: Sequence[Tensor], now: Tensor, padding: int) -> tuple[list[Tensor], list[Tensor]]:
        """What all ranks saw, the same on each, by one exchange between devices for all vocabularies together.

        How many ids each rank has of a vocabulary its host knows; they tell one another first, by which all send as many.

        Args:
            ids: of each vocabulary, [N] int64, in the same order on every rank.
            now: [] int64 epoch ms of this rank's batch.
            padding: what stands where a rank has fewer ids than another.

        Returns:
            Of each vocabulary, [world * longest] int64 ids, rank by rank; and [] int64, the newest time of the ranks that have any, else 0.
        """
        world = dist.get_world_size(self.group)
        own = torch.tensor([len(each) for each in ids])
        every = [torch.empty_like(own) for _ in range(world)]
        dist.all_gather(every, own, group=self.host)
        longest = torch.stack(every).amax(0).tolist()
        times = torch.stack([now if len(each) else torch.zeros_like(now) for each in ids])
        padded = [each.new_full((most - len(each),), padding) for each, most in zip(ids, longest, strict=True)]
        block = torch.cat([times, *(part for pair in zip(ids, padded, strict=True) for part in pair)])
        gathered = block.new_empty(world * len(block))
        dist.all_gather_into_tensor(gathered, block, group=self.group)
        newest, *parts = torch.split(gathered.view(world, -1), [len(ids), *longest], 1)
        return [part.flatten() for part in parts], list(newest.amax(0).unbind(0))
