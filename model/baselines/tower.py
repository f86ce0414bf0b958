"""What the pointwise baselines share: a model over `Context` with task heads, and the MLP on top of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from genrank.model.baselines.context import Context
from genrank.model.heads import Heads
from genrank.model.interface import Model
from genrank.tokenization.batch import Batch
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


def weights_of(*modules: nn.Module) -> int:
    """Weights of all linear maps in some modules: half the operations of a row."""
    return sum(each.weight.numel() for module in modules for each in module.modules() if isinstance(each, nn.Linear))


class Baseline(Model):
    """A model of one row per exposure; of a batch in training it counts its operations (`operations`)."""

    heads: Heads

    def __init__(self, embeddings: Embeddings, feature_norm: bool = False) -> None:
        super().__init__()
        self.context = Context(embeddings, feature_norm)
        self._operations: list[int | Tensor] = []
        self.register_forward_pre_hook(_count)

    @abstractmethod
    def operations(self, batch: Batch) -> int | Tensor:
        """Floating point operations of the matrix products of one forward pass, a multiply-add as two; on the device where it must be
        asked how many events there are."""

    @property
    def counts_flops(self) -> bool:
        """True."""
        return True

    def take_flops(self) -> int:
        """As `Model.take_flops`."""
        total = 3 * sum(int(each) for each in self._operations)
        self._operations = []
        return total

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


def _count(model: Baseline, arguments: tuple[Batch]) -> None:
    if model.training:
        model._operations.append(model.operations(*arguments))
