"""What trainer, evaluation and checkpoints ask of a model, whatever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings

AUXILIARY = "auxiliary."
"""Before a label's name: a second logit of it that a ranker may return in training. It is learned from and neither reported nor predicted."""


class Model(nn.Module, ABC):
    """Base of models. `Model.forward` maps a batch to what its task computes losses of: for a ranker {label: logit [C]}.

    What a model can do beyond that it says by overriding a method; the defaults are those of a model that can't.
    """

    several_ranks: ClassVar[bool] = True
    """Whether several processes can train it together."""

    @property
    @abstractmethod
    def embeddings(self) -> Embeddings:
        """The features' embedding tables."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What the model's task reads: of a ranker the logit of each label, [C] float32."""

    def prepare(self, samples: Path, dates: Sequence[str]) -> None:
        """Called once before training, with the samples' folder and the days to be learned."""

    def shardable_layers(self) -> Sequence[nn.Module]:
        """Layers that FSDP gathers one at a time; the rest is gathered with the whole."""
        return ()

    def compile_encoder(self) -> None:
        """torch.compile what can be.

        Raises:
            UserError: nothing can.
        """
        raise UserError(
            f"--compile is for models with an encoder, such as mtgr and hstu; {type(self).__name__} has none"
        )

    def recompute_activations(self) -> None:
        """Drop activations in forward and compute them again in backward.

        Raises:
            UserError: the model can't.
        """
        raise UserError(
            f"--recompute is for models with an encoder, such as mtgr and hstu; {type(self).__name__} has none"
        )

    @property
    def counts_flops(self) -> bool:
        """Whether `take_flops` knows."""
        return False

    def take_flops(self) -> int:
        """Floating point operations of forward and backward on the batches trained since the last call; 0 where they aren't counted.
        Waits for the device."""
        return 0
