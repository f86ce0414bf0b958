"""From what a sample stores to what a lookup reads: ids to rows, numbers to buckets and inputs, derived features on the way.

Every operation is stacked over the features of a token group that a vocabulary kind or a transform handles alike: a group of twenty
hashed ids costs the launches of one. What a kind of feature, vocabulary or transform does lies in `feature_kinds`, `vocabularies`
and `transforms`; here is how they are brought together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genrank.schemas.schema import Schema
from genrank.schemas.transforms import Transform
from genrank.schemas.vocabularies import Identity, Vocabulary
from genrank.tokenization.batch import Batch, Ragged
from genrank.tokenization.feature_kinds import GroupView, feature_values
from genrank.tokenization.local_time import LocalTime
from genrank.tokenization.plan import Lookup, Plan
from genrank.tokenization.row_encoder import RowEncoder
from genrank.tokenization.transforms import buckets_of, input_families
from genrank.tokenization.transforms.buckets import BucketRows
from genrank.tokenization.transforms.scalars import ScalarInputs
from genrank.tokenization.vectors import VectorInputs
from genrank.tokenization.vocabularies import VocabularyRows, vocabulary_rows


@dataclass
class Encoded:
    """A token group, ready for lookups; N rows."""

    rows: Tensor
    """[lookups of one value, N] int64 in the plan's order: physical rows; raw ids where the table is dynamic."""
    ragged: dict[str, Ragged]
    """Multi-valued features: the same, per value."""
    inputs: list[Tensor]
    """Per family of `GroupInputs`, what it reads of its numbers; then the vectors, if there are any."""


class GroupEncoder(nn.Module):
    """Rows and ids of one token group. Holds constants only, nothing that is learned.

    Args:
        boundaries: `<group>.<feature>` -> fitted boundaries, for every number in fitted buckets.
    """

    first_rows: Tensor

    def __init__(self, plan: Plan, group: str, boundaries: Mapping[str, Sequence[float]]) -> None:
        super().__init__()
        schema = plan.schema
        self.group = group
        self.local_time = LocalTime(schema.local_days)
        self.histories = tuple(s.name for s in schema.histories)
        self.realtime = schema.realtime.name if schema.realtime else None
        self.features = {feature.name: feature for feature in dict(schema.groups())[group]}
        lookups = plan.lookups_of(group)
        single = [lookup for lookup in lookups if lookup.pooling is None]
        self.single = len(single)
        starts = {lookup.feature: _start(lookup, plan) for lookup in lookups}
        first_rows = torch.tensor([[starts[lookup.feature]] for lookup in single] or [[0]])
        self.register_buffer("first_rows", first_rows, persistent=False)

        self.ragged = {
            lookup.feature: (starts[lookup.feature], row_encoder(plan.logical[lookup.table][0].vocabulary))
            for lookup in lookups
            if lookup.pooling
        }
        self.ragged_encoders = nn.ModuleList(encoder for _, encoder in self.ragged.values())
        self.families = self._families(plan, single, boundaries)
        self.encoders = nn.ModuleList(family.encoder for family in self.families)
        for number, family in enumerate(self.families):
            # On the device: an index by a Python list is a copy to it, every time.
            self.register_buffer(f"at_{number}", torch.tensor(family.at), persistent=False)

    def _families(
        self, plan: Plan, single: Sequence[Lookup], boundaries: Mapping[str, Sequence[float]]
    ) -> list[_Family]:
        """The one-valued lookups by what finds their rows: a vocabulary kind, or buckets."""
        buckets: dict[int, list[float]] = {}
        ids: dict[type[VocabularyRows[Vocabulary]], dict[int, Vocabulary]] = {}
        for at, lookup in enumerate(single):
            feature = self.features.get(lookup.feature)
            vocabulary = plan.logical[lookup.table][0].vocabulary
            if feature is None:
                # The event type, which is stored as a position among the table's names.
                vocabulary = Identity(size=vocabulary.size)
            elif transform := feature.number_transform:
                finder = buckets_of(transform)
                assert finder is not None, f"{self.group}.{feature.name} has a table and no buckets"
                buckets[at] = finder.edges(transform, boundaries.get(f"{self.group}.{feature.name}"))
                continue
            ids.setdefault(vocabulary_rows(vocabulary), {})[at] = vocabulary
        encoders: list[tuple[RowEncoder, list[int]]] = [
            (kind(list(own.values())), list(own)) for kind, own in ids.items()
        ]
        if buckets:
            encoders.append((BucketRows(list(buckets.values())), list(buckets)))
        return [_Family(encoder, [single[i].feature for i in at], at) for encoder, at in encoders]

    def view(self, batch: Batch) -> GroupView:
        """This group of a batch."""
        return GroupView(batch, self.group, self.local_time, self.histories, self.realtime)

    def values(self, view: GroupView, name: str) -> Tensor:
        """[N] int64 ids or float32 numbers of a feature of one value, stored or derived."""
        feature = self.features.get(name)
        found = feature_values(feature, view) if feature else view.stored(name)
        assert isinstance(found, Tensor), f"{self.group}.{name} has a list of values"
        return found

    def encode(self, batch: Batch, inputs: GroupInputs) -> Encoded:
        """All that lookups and inputs read of this group's N rows."""
        rows, ragged = self(batch)
        return Encoded(rows, ragged, inputs.prepare(self, batch))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Ragged]]:
        """`Encoded.rows` and `Encoded.ragged` of this group's N rows."""
        view = self.view(batch)
        n, device = len(view.group.ts), view.group.ts.device
        found = [f.encoder(torch.stack([self.values(view, name) for name in f.names])) for f in self.families]
        if len(found) == 1:
            rows = found[0] + self.first_rows
        else:
            rows = torch.empty((self.single, n), dtype=torch.int64, device=device)
            for number, own in enumerate(found):
                rows.index_copy_(0, self.get_buffer(f"at_{number}"), own)
            if self.single:
                rows += self.first_rows
        ragged = {}
        for name, (start, encoder) in self.ragged.items():
            lists = feature_values(self.features[name], view)
            assert isinstance(lists, Ragged), f"{self.group}.{name} has one value"
            ragged[name] = Ragged(encoder(lists.values[None])[0] + start, lists.offsets)
        return rows, ragged


class _Family(NamedTuple):
    """Lookups of one value whose rows one encoder finds together."""

    encoder: RowEncoder
    names: list[str]
    """The features."""
    at: list[int]
    """Their positions among the group's lookups of one value."""


class GroupInputs(nn.Module):
    """The numbers of one token group that become inputs of its tokens without a lookup: `Dense`, `Log`, `AutoDis` and others; and its vectors.

    A module per transform family, under the family's `STATE_NAME`.
    """

    def __init__(self, plan: Plan, group: str) -> None:
        super().__init__()
        features = dict(plan.schema.groups())[group]
        numbers = [(feature.name, transform) for feature in features if (transform := feature.number_transform)]
        self.families = {kind.STATE_NAME: kind(members) for kind, members in input_families(numbers)}
        for name, family in self.families.items():
            self.add_module(name, family)
        self.vectors = VectorInputs(features)

    @property
    def widths(self) -> list[tuple[str, int]]:
        """(feature, columns) in output order."""
        return [*(each for family in self.families.values() for each in family.widths), *self.vectors.widths]

    def prepare(self, encoder: GroupEncoder, batch: Batch) -> list[Tensor]:
        """What needs no parameter: `Encoded.inputs`."""
        view = encoder.view(batch)
        prepared = [
            family.prepare(torch.stack([encoder.values(view, name) for name, _ in family.features]))
            for family in self.families.values()
        ]
        vectors = [feature_values(feature, view) for feature in self.vectors.features]
        return [*prepared, self.vectors.columns(vectors)] if vectors else prepared

    def forward(self, prepared: Sequence[Tensor]) -> list[Tensor]:
        """Per family [N, columns] float32; then the vectors'."""
        # Vectors come last, as they are.
        own = [family(each) for family, each in zip(self.families.values(), prepared, strict=False)]
        return [*own, *prepared[len(own) :]]


def row_encoder(vocabulary: Vocabulary) -> RowEncoder:
    """The encoder of one vocabulary: [1, N] int64 ids -> [1, N] int64 rows."""
    return vocabulary_rows(vocabulary)([vocabulary])


def scalar_names(schema: Schema, group: str) -> list[str]:
    """A group's numbers that are inputs of one value (`Dense`, `Log1p`), in the order of their columns."""
    numbers = [(f.name, transform) for f in dict(schema.groups())[group] if (transform := f.number_transform)]
    families = [kind(members) for kind, members in input_families(numbers)]
    return [name for family in families if isinstance(family, ScalarInputs) for name, _ in family.features]


def fitted_features(schema: Schema) -> list[tuple[str, str, Transform]]:
    """(group, feature, transform) of every number whose buckets are fitted on training days."""
    return [
        (group, feature.name, transform)
        for group, features in schema.groups()
        for feature in features
        if (transform := feature.number_transform) and (buckets := buckets_of(transform)) and buckets.fitted
    ]


def _start(lookup: Lookup, plan: Plan) -> int:
    """What is added to a row to make it physical: nothing to an id that an id map has yet to place."""
    return 0 if plan.by_name[lookup.merged].dynamic else lookup.start
