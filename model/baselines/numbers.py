"""The numbers of a candidate and its user as plain columns, raw: what a tree or a sort reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.tokenization.batch import Batch, Ragged
from genrank.tokenization.features import GroupEncoder, fitted_features
from genrank.tokenization.plan import make_plan
from genrank.tokenization.vectors import dense


class Numbers(nn.Module):
    """Every number of the candidates, stored or derived, before its transform; then, with `user`, every number of the user.

    `names` has `<group>.<feature>` of each column; then `<group>.<vector>[i]` of each number of each vector.
    """

    def __init__(self, schema: Schema, *, user: bool = True) -> None:
        super().__init__()
        plan = make_plan(schema)
        unfitted = {f"{group}.{name}": [0.0] for group, name, _ in fitted_features(schema)}
        groups = dict(schema.groups())
        read = (CANDIDATES, *([USER] if user else []))
        self.features = [
            (group, feature.name) for group in read for feature in groups[group] if feature.number_transform
        ]
        self.vectors = [
            (group, feature.name, feature.vector_length)
            for group in read
            for feature in groups[group]
            if feature.vector_length
        ]
        self.names = [f"{group}.{name}" for group, name in self.features]
        self.names += [f"{group}.{name}[{at}]" for group, name, length in self.vectors for at in range(length)]
        self.encoders = nn.ModuleDict({group: GroupEncoder(plan, group, unfitted) for group, _ in self.features})

    def forward(self, batch: Batch) -> Tensor:
        """[C, len(names)] float32, NaN where missing."""
        columns = []
        for group, name in self.features:
            encoder = self.encoders[group]
            assert isinstance(encoder, GroupEncoder)
            values = encoder.values(encoder.view(batch), name)
            if group == USER:
                values = torch.repeat_interleave(values, batch.candidates.lengths, output_size=len(batch.item))
            columns.append(values.float())
        for group, name, length in self.vectors:
            leaf = batch.groups[group].features[name]
            assert isinstance(leaf, Ragged)
            vectors = dense(leaf, length, missing=float("nan"))
            if group == USER:
                vectors = torch.repeat_interleave(vectors, batch.candidates.lengths, 0, output_size=len(batch.item))
            columns += vectors.unbind(1)
        return torch.stack(columns, 1) if columns else torch.zeros(len(batch.item), 0, device=batch.item.device)
