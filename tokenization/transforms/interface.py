"""What an encoding of numbers does on the tensor side, and the registries of those that do.

A transform either puts a number into a bucket, whose row a lookup reads (`BucketTransform`), or makes columns of the token's
input itself (`InputEncoder`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from genrank.schemas.errors import UserError
from genrank.schemas.transforms import Transform
from genrank.tokenization.plan import input_width
from genrank.tokenization.registry import Registry

T = TypeVar("T", bound=Transform)


class BucketTransform(ABC, Generic[T]):
    """Where the buckets of a number end: bucket i holds edges[i-1] <= x < edges[i]."""

    fitted: ClassVar[bool] = False
    """Whether the edges come from the training days' values rather than from the declaration."""

    @abstractmethod
    def edges(self, transform: T, fitted: Sequence[float] | None) -> list[float]:
        """Ascending edges.

        Args:
            transform: the declaration.
            fitted: what `fit` returned, for a transform that is fitted.
        """

    def fit(self, transform: T, values: npt.NDArray[np.float64]) -> list[float]:
        """Ascending edges from [n] values of the training days, none of them missing."""
        raise NotImplementedError(f"{transform.kind} is not fitted")


class InputEncoder(nn.Module, ABC, Generic[T]):
    """Numbers to columns of the token's input, for F features with transforms of this class at once.

    Args:
        features: (name, transform) of each, in the order of `prepare`'s rows.
    """

    STATE_NAME: ClassVar[str]
    """Name of the module in a token group's state: part of the checkpoint's keys if it has parameters, so it must not change."""

    def __init__(self, features: Sequence[tuple[str, T]]) -> None:
        super().__init__()
        self.features = list(features)

    @property
    def widths(self) -> list[tuple[str, int]]:
        """(feature, columns) in the order of `forward`'s columns."""
        return [(name, input_width(transform)) for name, transform in self.features]

    def prepare(self, numbers: Tensor) -> Tensor:
        """What needs no parameter, done ahead of time with the lookups: [F, N] float32, NaN where missing -> what `forward` reads."""
        return numbers

    @abstractmethod
    def forward(self, prepared: Tensor) -> Tensor:
        """[N, sum of widths] float32."""


_KINDS: Registry[BucketTransform[Transform] | type[InputEncoder[Transform]]] = Registry("transform")


def register_buckets(kind: str, buckets: BucketTransform[T]) -> None:
    """Put numbers whose transform has this `kind` into buckets.

    Raises:
        ValueError: the kind is another's.
    """
    _KINDS.add(kind, cast(BucketTransform[Transform], buckets))


def register_input(kind: str, encoder: type[InputEncoder[T]]) -> None:
    """Make columns of the token's input from numbers whose transform has this `kind`.

    Columns lie in the order in which kinds were registered.

    Raises:
        ValueError: the kind is another's.
    """
    _KINDS.add(kind, cast(type[InputEncoder[Transform]], encoder))


def _entry(transform: Transform) -> BucketTransform[Transform] | type[InputEncoder[Transform]]:
    entry = _KINDS.get(transform.kind)
    if entry is None:
        raise UserError(
            f"transform kind {transform.kind!r} encodes no number; "
            "register it with genrank.tokenization.transforms.register_input or register_buckets"
        )
    return entry


def buckets_of(transform: Transform) -> BucketTransform[Transform] | None:
    """How a transform finds its buckets; None if it makes inputs.

    Raises:
        UserError: nothing is registered for its kind.
    """
    entry = _entry(transform)
    return None if isinstance(entry, type) else entry


def input_families(
    features: Iterable[tuple[str, Transform]],
) -> list[tuple[type[InputEncoder[Transform]], list[tuple[str, Transform]]]]:
    """Numbers that become inputs, those of one encoder together: in the order of registration, then as given."""
    families: dict[type[InputEncoder[Transform]], list[tuple[str, Transform]]] = {}
    found = [(name, transform, _entry(transform)) for name, transform in features]
    order = list(_KINDS)
    for name, transform, entry in sorted(found, key=lambda each: order.index(each[1].kind)):
        if isinstance(entry, type):
            families.setdefault(entry, []).append((name, transform))
    return list(families.items())
