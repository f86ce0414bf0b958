"""Loss on the events of a history (HSTU, arXiv:2402.17152, section 2.2): ranking's question at every item, not at candidates alone.

    sum over events i of  - log softmax(W h_i)[type of i],    h_i the vector of the event's first token

Which type an event of a sequence became (clicked, bought, only shown) is its label, and known of every event from the sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrank.schemas.errors import UserError
from genrank.schemas.schema import Schema
from genrank.tokenization.event_actions import type_ranges


class EventHeads(nn.Module):
    """A linear map a sequence to the types of its events; sequences of one type have nothing to predict.

    Args:
        dim: width of a token's vector.

    Raises:
        UserError: no sequence has events of several types.
    """

    def __init__(self, dim: int, schema: Schema) -> None:
        super().__init__()
        self.ranges = {name: types for name, types in type_ranges(schema).items() if len(types) > 1}
        if not self.ranges:
            names = ", ".join(sequence.name for sequence in schema.sequences)
            raise UserError(
                f"--set history_loss: {names or 'no sequence'} has events of one type, so that there is nothing to predict; declare the"
                " events by what became of them (Events(..., where=..., name=...)), or give 0"
            )
        self.heads = nn.ModuleDict({f"of_{name}": nn.Linear(dim, len(types)) for name, types in self.ranges.items()})

    def forward(self, vectors: Tensor, event_types: Tensor) -> Tensor:
        """Scalar: the sum of the events' losses.

        Args:
            vectors: [T, dim] of any float dtype.
            event_types: [T], `Tokens.event_types`.
        """
        # Outside autocast nothing else casts what a model's last layer left in bfloat16.
        vectors = vectors.to(next(self.parameters()).dtype)
        if torch.amp.is_autocast_available(vectors.device.type):
            with torch.autocast(vectors.device.type, enabled=False):
                return self._sum(vectors, event_types)
        return self._sum(vectors, event_types)

    def _sum(self, vectors: Tensor, event_types: Tensor) -> Tensor:
        total = vectors.new_zeros(())
        for name, types in self.ranges.items():
            own = (event_types >= types.start) & (event_types < types.stop)
            target = torch.where(own, event_types - types.start, -1).long()
            logits = self.heads[f"of_{name}"](vectors)
            total = total + F.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
        return total
