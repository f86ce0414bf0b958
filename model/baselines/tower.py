"""What the pointwise baselines share: a model over `Context` with task heads, and the MLP on top of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from genrank.model.baselines.context import Context
from genrank.model.heads import Heads
from genrank.model.interface import Model
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.quantiles import fit_moments


class Tower(nn.Sequential):
    """[C, width] -> [C, `out_dim`]: layers of Linear, activation and dropout.

    Args:
        width: of what comes in.
        hidden: widths of the layers.
        activation: makes the module after each linear map.
    """

    def __init__(
        self, width: int, hidden: Sequence[int], dropout: float, activation: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), activation(), nn.Dropout(dropout)]
            width = size
        super().__init__(*layers)
        self.out_dim = width


class Baseline(Model):
    """A model of one row per exposure."""

    heads: Heads

    def __init__(self, embeddings: Embeddings, feature_norm: bool = False) -> None:
        super().__init__()
        self.context = Context(embeddings, feature_norm)

    @property
    def embeddings(self) -> Embeddings:
        """The features' embedding tables."""
        return self.context.embeddings

    def prepare(self, samples: Path, dates: Sequence[str]) -> None:
        """With features at one scale: the training days' moments of every number."""
        if self.context.norms is not None:
            self.context.norms.set_moments(fit_moments(samples, self.embeddings.plan.schema, dates))

    def logits(self, x: Tensor) -> dict[str, Tensor]:
        """[C, width of the heads] -> {label: logit [C]}."""
        found: dict[str, Tensor] = self.heads(x)
        return found
