"""What trainer, evaluation and checkpoints ask of a model, whatever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn

from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings

AUXILIARY = "auxiliary."
"""Before a label's name: a second logit of it that a ranker may return in training, or several (then `AUXILIARY` + which + "/" + label).
Learned from and neither reported nor predicted."""
ADDED_LOSS = "added loss"
"""A scalar that a ranker may return in training beside the logits: a sum of losses, to be divided as the candidates' are. Learned from and not
reported."""
Phase = Literal["both", "dense", "sparse"]
"""Which parameters learn (two-stage training: GRAB, arXiv:2602.01865)."""


class Model(nn.Module, ABC):
    """Base of models. `Model.forward` maps a batch to what its task computes losses of: for a ranker {label: logit [C]}.

    What a model can do beyond that it says by overriding a method; the defaults are those of a model that can't.
    """

    several_ranks: ClassVar[bool] = True
    """Whether several processes can train it together."""
    learns_by_steps: ClassVar[bool] = True
    """Whether the trainer's steps learn it; if not, `learn` does, from all days at once, and it has no tables."""

    @property
    @abstractmethod
    def embeddings(self) -> Embeddings:
        """The features' embedding tables."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What the model's task reads: of a ranker the logit of each label, [C] float32."""

    def prepare(self, samples: Path, dates: Sequence[str]) -> None:
        """Called once before training, with the samples' folder and the days to be learned."""

    def learn(self, samples: Path, dates: Sequence[str], seed: int) -> int:
        """Learn from all of some days at once; returns how many candidates there were. Of models that don't learn by steps.

        Raises:
            UserError: there is nothing to learn from.
        """
        raise NotImplementedError(f"{type(self).__name__} learns by steps")

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Called before a checkpoint's state is loaded: where shapes depend on what was learned, take its."""

    def shardable_layers(self) -> Sequence[nn.Module]:
        """Layers that FSDP gathers one at a time; the rest is gathered with the whole."""
        return ()

    def compile_dense(self, backend: str = "inductor") -> None:
        """torch.compile what is computed of features' vectors.

        Args:
            backend: `kernels.compiled`.

        Raises:
            UserError: nothing can be compiled, or there is no compiler.
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

    def set_phase(self, phase: Phase) -> None:
        """What learns: everything; `dense`: all but the tables' rows; `sparse`: the rows, through an auxiliary network.

        Raises:
            UserError: `sparse`, and the model has no such network.
        """
        if phase == "sparse":
            raise UserError(
                f"--phase sparse is for models with an auxiliary network that rows learn through, such as grab; {type(self).__name__}"
                " has none"
            )
        self.embeddings.frozen = phase == "dense"

    @property
    def counts_flops(self) -> bool:
        """Whether `take_flops` knows."""
        return False

    def take_flops(self) -> int:
        """Floating point operations of forward and backward on the batches trained since the last call; 0 where they aren't counted.
        Waits for the device."""
        return 0
