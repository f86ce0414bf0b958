"""What a feature kind does on the tensor side: the values of a token group's rows, and the registries of those that derive them.

Most derive theirs from a batch. What compares a candidate with others (`register_number`) is computed from stored rows, before they are
cut into the samples of a view, and lies in batches as if it were stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

from genrank.schemas.errors import UserError
from genrank.schemas.features import Feature
from genrank.schemas.schema import USER
from genrank.tokenization.batch import Batch, Group, Ragged
from genrank.tokenization.peers import Floats, Peers
from genrank.tokenization.registry import Registry

F = TypeVar("F", bound=Feature)


@dataclass(frozen=True)
class GroupView:
    """A token group of a batch, and what values are derived from; N rows."""

    batch: Batch
    name: str
    local_time: Callable[[Tensor], Tensor]
    """Times, int64 epoch ms, as the clocks of the schema's `utc_offset` show them: see `tokenization.local_time`."""
    histories: tuple[str, ...]
    """The history sequences."""
    realtime: str | None
    """The realtime sequence."""

    @property
    def group(self) -> Group:
        """Its rows."""
        return self.batch.groups[self.name]

    def stored(self, feature: str) -> Tensor:
        """[N] int64 ids or times, or float32 numbers, as a feature of one value is stored."""
        return _one_value(self.group.features[feature])

    def of_user(self, feature: str) -> Tensor:
        """[N]: each row's user's stored value."""
        users = _one_value(self.batch.groups[USER].features[feature])
        return torch.repeat_interleave(users, self.group.lengths, output_size=len(self.group.ts))


def _one_value(leaf: Tensor | Ragged) -> Tensor:
    assert isinstance(leaf, Tensor)
    return leaf


Values = Callable[[F, GroupView], Tensor | Ragged]
"""(feature, token group) -> [N] int64 ids (`MISSING_ID` where missing), [N] float32 numbers (NaN where missing), or N lists of ids."""

_KINDS: Registry[Values[Feature]] = Registry("feature")


def register_values(kind: str, values: Values[F]) -> None:
    """Derive the values of features whose `kind` is this with `values`. A stored kind without an entry is read as it is stored.

    Raises:
        ValueError: the kind is another's.
    """
    _KINDS.add(kind, cast(Values[Feature], values))


class StoredCandidates(Protocol):
    """The candidates of stored rows, whatever samples they are cut into; C of them: `tokenization.read_time.StoredNumbers`."""

    def number(self, feature: str) -> Floats:
        """[C] float64, NaN where missing: a number that is stored, or computed when samples are read."""
        ...

    @property
    def peers(self) -> Peers:
        """The candidates that each is compared with."""
        ...


Numbers = Callable[[F, StoredCandidates], Floats]
"""(feature, candidates of stored rows) -> [C] float64, NaN where missing."""

_NUMBERS: Registry[Numbers[Feature]] = Registry("feature")


def register_number(kind: str, numbers: Numbers[F]) -> None:
    """Compute the numbers of features whose `kind` is this (a `ReadTimeNumber`) with `numbers`, when samples are read.

    Raises:
        ValueError: the kind is another's.
    """
    _NUMBERS.add(kind, cast(Numbers[Feature], numbers))


def number_function(feature: Feature) -> Numbers[Feature] | None:
    """What computes a feature's number when samples are read; None for a kind that isn't computed then."""
    return _NUMBERS.get(feature.kind) if feature.stored is None and feature.kind not in _KINDS else None


def feature_values(feature: Feature, view: GroupView) -> Tensor | Ragged:
    """The values of a feature in a token group: see `Values`.

    Raises:
        UserError: it is neither stored nor registered.
    """
    if feature.kind not in _KINDS and (feature.stored is not None or feature.kind in _NUMBERS):
        return view.group.features[feature.name]
    derive = _KINDS.get(feature.kind)
    if derive is None:
        raise UserError(
            f"feature {view.name}.{feature.name} of kind {feature.kind!r} is not stored and nothing derives it; "
            "register the kind with genrank.tokenization.feature_kinds.register_values (or register_number)"
        )
    return derive(feature, view)
