"""Soft buckets learned end to end: AutoDis (Guo et al., KDD 2021, arXiv:2012.08986)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from genrank.kernels.autodis import LARGEST, Number, autodis, table
from genrank.kernels.dispatch import backend_for
from genrank.schemas.transforms import AutoDis
from genrank.tokenization.stacked_parameters import gather_parameters
from genrank.tokenization.transforms.interface import InputEncoder
from genrank.tokenization.transforms.scalars import signed_log


class AutoDisInputs(InputEncoder[AutoDis]):
    """AutoDis numbers of a group (equations 6 to 9), with a vector for missing.

    Numbers of similar sizes are computed together; parameters are kept by feature.
    """

    STATE_NAME = "of"

    def __init__(self, features: Sequence[tuple[str, AutoDis]]) -> None:
        super().__init__(features)
        sets: list[dict[AutoDis, list[int]]] = []
        for at, (name, transform) in enumerate(self.features):
            own = next((each for each in sets if _similar([*each, transform])), None)
            if own is None:
                sets.append(own := {})
            own.setdefault(transform, []).append(at)
            self.add_module(f"of_{name}", AutoDisEmbedding(transform))
        orders = [[at for members in each.values() for at in members] for each in sets]
        self.names = [[self.features[at][0] for at in order] for order in orders]
        # Constants alone, no state.
        self.sets = nn.ModuleList(_Together(order, [self.features[at][1] for at in order]) for order in orders)

    @property
    def widths(self) -> list[tuple[str, int]]:
        """(feature, columns): equal transforms together."""
        transforms = dict(self.features)
        return [(name, transforms[name].dim) for names in self.names for name in names]

    def prepare(self, numbers: Tensor) -> Tensor:
        """[F, N] float32 -> the same shape: sign(x) log(1 + |x|), NaN where missing."""
        return signed_log(numbers)

    def forward(self, prepared: Tensor) -> Tensor:
        """[F, N] float32 with NaN for missing -> [N, sum of dims] float32."""
        out = []
        for names, together in zip(self.names, self.sets, strict=True):
            embeddings = [self.get_submodule(f"of_{name}") for name in names]
            out.append(together([each.get_parameter(of) for each in embeddings for of in PARAMETERS], prepared))
        return torch.cat(out, 1) if len(out) > 1 else out[0]


PARAMETERS = ("lift", "mixing", "skip", "vectors", "missing")


def _similar(transforms: Sequence[AutoDis]) -> bool:
    """Whether they can be padded to the largest: none to more than twice its size."""
    sizes = [[t.buckets for t in transforms], [t.dim for t in transforms]]
    return all(max(of) <= 2 * min(of) for of in sizes)


class _Together(nn.Module):
    """Several AutoDis numbers in one computation: by one kernel, or padded to the most buckets and the widest vector.

    Args:
        order: which numbers of the family's.
        transforms: theirs.
    """

    order: Tensor
    places: Tensor
    inverse: Tensor
    padding: Tensor
    temperatures: Tensor
    zero: Tensor
    skipped: Tensor
    columns: Tensor
    kernel_places: Tensor

    def __init__(self, order: Sequence[int], transforms: Sequence[AutoDis]) -> None:
        super().__init__()
        count = len(transforms)
        self.buckets, self.dim = max(t.buckets for t in transforms), max(t.dim for t in transforms)
        self.padded = len({t.buckets for t in transforms}) > 1
        self.warm = any(t.temperature != 1 for t in transforms)
        self.moved = list(order) != sorted(order)
        self._constant("order", torch.tensor(order))
        kinds = list(zip(*_places(transforms, self.buckets, self.dim), strict=True))
        self.sizes = [sum(map(len, kind)) for kind in kinds]
        places = torch.cat([each for kind in kinds for each in kind])
        self._constant("places", places)
        inverse = torch.empty(sum(map(_parameters, transforms)) + 1, dtype=torch.int64)
        inverse[places] = torch.arange(len(places))
        self._constant("inverse", inverse[:-1])  # The last place is the padding's.
        unused = torch.arange(self.buckets) >= torch.tensor([[t.buckets] for t in transforms])
        self._constant("padding", torch.zeros(count, self.buckets).masked_fill(unused, -math.inf)[:, None])
        self._constant("temperatures", torch.tensor([t.temperature for t in transforms])[:, None, None])
        self._constant("zero", torch.zeros(1))
        self._constant("skipped", torch.eye(self.buckets))
        used = torch.arange(self.dim) < torch.tensor([[t.dim] for t in transforms])
        self._constant("columns", used.flatten().nonzero().squeeze(1))
        self.numbers = [Number(row, t.buckets, t.dim, t.temperature) for row, t in zip(order, transforms, strict=True)]
        self._constant("kernel_places", table(self.numbers))

    def forward(self, parameters: Sequence[Tensor], prepared: Tensor) -> Tensor:
        """[F, N] float32 with NaN for missing -> [N, sum of dims] float32.

        Args:
            parameters: `PARAMETERS` of each number.
        """
        # A compiler fuses PyTorch's operations by itself.
        if torch.compiler.is_compiling() or self.buckets > LARGEST or backend_for(prepared) == "blocked":
            return self.by_operations(parameters, prepared)
        return autodis(prepared, self.numbers, parameters, self.kernel_places)

    def by_operations(self, parameters: Sequence[Tensor], prepared: Tensor) -> Tensor:
        """`forward` by PyTorch's operations: on a CPU products of all numbers at once."""
        flat = gather_parameters(self.places, self.inverse, self.zero, self.sizes, parameters)
        count, h, d = len(self.order), self.buckets, self.dim
        shapes = ((count, 1, h), (count, h, h), (count, 1, 1), (count, h, d), (count, 1, d))
        lift, mixing, skip, vectors, missing = (each.view(shape) for each, shape in zip(flat, shapes, strict=True))
        if self.moved or len(prepared) > count:
            # Not indexed by a list, which would be a copy to the device that waits.
            prepared = prepared.index_select(0, self.order)
        hidden = nn.functional.leaky_relu(prepared.nan_to_num(0.0)[:, :, None] * lift)
        mixing = torch.addcmul(mixing, skip, self.skipped)
        if self.warm:
            mixing = mixing / self.temperatures
        scores = torch.baddbmm(self.padding, hidden, mixing) if self.padded else torch.bmm(hidden, mixing)
        found = torch.where(prepared.isnan()[:, :, None], missing, torch.bmm(scores.softmax(-1), vectors))
        side_by_side = found.transpose(0, 1).flatten(1)
        return side_by_side.index_select(1, self.columns) if len(self.columns) < count * d else side_by_side

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)


def _places(transforms: Sequence[AutoDis], buckets: int, dim: int) -> Iterator[list[Tensor]]:
    """Of each number, where the padded values of its `PARAMETERS` lie among all numbers' parameters one after another; a padding's
    place is behind them."""
    end, first = sum(map(_parameters, transforms)), 0
    for each in transforms:
        places = []
        for shape, whole in zip(_shapes(each.buckets, each.dim), _shapes(buckets, dim), strict=True):
            at = torch.full(whole, end)
            at[tuple(map(slice, shape))] = torch.arange(first, first + math.prod(shape)).view(shape)
            places.append(at.flatten())
            first += math.prod(shape)
        yield places


def _shapes(buckets: int, dim: int) -> list[tuple[int, ...]]:
    """Of `PARAMETERS`."""
    return [(buckets,), (buckets, buckets), (1,), (buckets, dim), (dim,)]


def _parameters(transform: AutoDis) -> int:
    return sum(map(math.prod, _shapes(transform.buckets, transform.dim)))


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
