"""Features at one scale before they become a token: vectors divided by their root mean square, numbers standardised.

Without it a token is mostly its largest numbers: a logarithm of milliseconds is near 10, a new row's values near 0.02, and the
layer norm of the token leaves of an id 1 % of what it leaves of the logarithm. Averaged over a history, what all events have in
common is then nearly all there is. benchmarks/history.md has what it brings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.features import scalar_names

EPS = 1e-8
"""Added to a vector's mean square: rows of zeros stay zeros, and a row at its initial deviation of 0.02 (4e-4) is far above it."""


class FeatureNorms(nn.ModuleDict):
    """A `FeatureNorm` a group, and what fits them."""

    def __init__(self, embeddings: Embeddings) -> None:
        super().__init__({f"of_{group}": FeatureNorm(embeddings, group) for group in embeddings.groups})

    def scaled(self, matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Group -> [N, width(group)] float32, every feature at one scale."""
        return {group: self[f"of_{group}"](matrix) for group, matrix in matrices.items()}

    @property
    def eps(self) -> float:
        """Added to a vector's mean square."""
        return EPS

    def moments(self, group: str, feature: str) -> Tensor:
        """[2] float32: mean and deviation of a number."""
        norm = self[f"of_{group}"]
        assert isinstance(norm, FeatureNorm)
        return norm.moments.get_buffer(f"of_{feature}")

    def set_moments(self, moments: Mapping[str, tuple[float, float]]) -> None:
        """`<group>.<feature>` -> (mean, standard deviation), of `tokenization.quantiles.fit_moments`."""
        for norm in self.values():
            assert isinstance(norm, FeatureNorm)
            norm.set_moments(moments)


class FeatureNorm(nn.Module):
    """A group's matrix, [N, width] -> [N, width] float32.

    An embedded feature of d columns: x / sqrt(mean(x^2) + 1e-8), an RMSNorm (Zhang and Sennrich, arXiv:1910.07467) without a gain:
    the projection that follows has it. A number: (x - mean) / deviation where it is present, 0 where it is missing; its missing
    flag as it is. Moments are constants of the training days, kept with the weights, one buffer a feature; (0, 1) until `set_moments`.
    """

    members: Tensor
    sizes: Tensor
    values: Tensor
    flags: Tensor

    def __init__(self, embeddings: Embeddings, group: str) -> None:
        super().__init__()
        layout = embeddings.layout[group]
        self.group, self.numbers = group, scalar_names(embeddings.plan.schema, group)
        vectors = [columns for name, columns in layout.items() if name not in self.numbers]
        members = torch.zeros(embeddings.width(group), len(vectors))
        for at, columns in enumerate(vectors):
            members[columns, at] = 1.0
        self._constant("members", members)  # [width, vectors]: 1 where a column is the vector's
        self._constant("sizes", members.sum(0))
        self._constant("values", torch.tensor([layout[name].start for name in self.numbers], dtype=torch.int64))
        self._constant("flags", members.sum(1) == 0)  # [width]: columns of numbers
        self.moments = nn.Module()
        for name in self.numbers:
            self.moments.register_buffer(f"of_{name}", torch.tensor([0.0, 1.0]))

    def set_moments(self, moments: Mapping[str, tuple[float, float]]) -> None:
        """`<group>.<feature>` -> (mean, standard deviation), of `tokenization.quantiles.fit_moments`."""
        for name in self.numbers:
            buffer = self.moments.get_buffer(f"of_{name}")
            buffer.copy_(torch.tensor(moments[f"{self.group}.{name}"]))

    def forward(self, x: Tensor) -> Tensor:
        """[N, width] -> [N, width] float32."""
        exact = contextlib.nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
        with exact:  # bfloat16 would round each vector's norm
            if self.members.shape[1]:
                inverse = torch.rsqrt((x.square() @ self.members) / self.sizes + EPS)
                x = x * (inverse @ self.members.t() + self.flags)
            if self.numbers:
                mean, deviation = torch.stack(list(self.moments.buffers()), 1)
                present = 1 - x.index_select(1, self.values + 1)
                standard = (x.index_select(1, self.values) - mean) / deviation * present
                x = x.index_copy(1, self.values, standard)
        return x

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)
