"""Soft buckets learned end to end: AutoDis (Guo et al., KDD 2021, arXiv:2012.08986)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genrank.schemas.transforms import AutoDis
from genrank.tokenization.transforms.interface import InputEncoder
from genrank.tokenization.transforms.scalars import signed_log


class AutoDisInputs(InputEncoder[AutoDis]):
    """AutoDis numbers of a group (equations 6 to 9), with a vector for missing.

    Numbers with equal (buckets, dim, temperature) are computed together; parameters are kept by feature.
    """

    STATE_NAME = "of"

    def __init__(self, features: Sequence[tuple[str, AutoDis]]) -> None:
        super().__init__(features)
        self.equal: dict[AutoDis, list[tuple[int, str]]] = {}
        for at, (name, transform) in enumerate(self.features):
            self.equal.setdefault(transform, []).append((at, name))
            self.add_module(f"of_{name}", AutoDisEmbedding(transform))

    @property
    def widths(self) -> list[tuple[str, int]]:
        """(feature, columns): equal transforms together."""
        return [(name, transform.dim) for transform, members in self.equal.items() for _, name in members]

    def prepare(self, numbers: Tensor) -> Tensor:
        """[F, N] float32 -> the same shape: sign(x) log(1 + |x|), NaN where missing."""
        return signed_log(numbers)

    def forward(self, prepared: Tensor) -> Tensor:
        """[F, N] float32 with NaN for missing -> [N, sum of dims] float32."""
        # Stacked, not indexed by a list, which would be a copy to the device that waits.
        numbers = [torch.stack([prepared[at] for at, _ in members], 1) for members in self.equal.values()]
        out = [
            self._vectors(transform, [name for _, name in members], x)
            for (transform, members), x in zip(self.equal.items(), numbers, strict=True)
        ]
        return torch.cat(out, 1)

    def _vectors(self, transform: AutoDis, names: list[str], x: Tensor) -> Tensor:
        def stacked(parameter: str) -> Tensor:
            return torch.stack([self.get_submodule(f"of_{name}").get_parameter(parameter) for name in names])

        hidden = nn.functional.leaky_relu(x.nan_to_num(0.0)[:, :, None] * stacked("lift"))
        scores = torch.einsum("nfh,fhk->nfk", hidden, stacked("mixing")) + stacked("skip") * hidden
        vectors = torch.einsum("nfh,fhd->nfd", (scores / transform.temperature).softmax(-1), stacked("vectors"))
        return torch.where(x.isnan()[:, :, None], stacked("missing"), vectors).flatten(1)


class AutoDisEmbedding(nn.Module):
    """The parameters of one AutoDis number: h buckets, vectors of width d."""

    def __init__(self, transform: AutoDis) -> None:
        super().__init__()
        h = transform.buckets
        self.lift = nn.Parameter(torch.empty(h).uniform_(-1, 1))
        self.mixing = nn.Parameter(torch.empty(h, h).uniform_(-(h**-0.5), h**-0.5))
        self.skip = nn.Parameter(torch.ones(1))
        self.vectors = nn.Parameter(torch.empty(h, transform.dim).normal_(std=0.02))
        self.missing = nn.Parameter(torch.zeros(transform.dim))
