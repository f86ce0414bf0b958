"""Permutation importance (Breiman 2001; Fisher et al. 2019, arXiv:1801.01489): what a ranker loses when a feature is shuffled.

A feature's values are shuffled among the rows of its group in a batch: candidates, users, or events. What is derived from it (crossed ids, a
gap since its moment) follows; what is computed from it when samples are read is a feature of its own, and keeps its values. Features that
say the same stand in for each other, so that each alone seems to matter little: the row of a whole group shuffles all of it together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from genrank.model.config import EvaluateConfig
from genrank.model.documents import Importance
from genrank.model.interface import Model
from genrank.model.metrics import Predictions
from genrank.model.paired import paired_differences
from genrank.model.predict import candidate_users, predict
from genrank.model.ranks import Ranks
from genrank.schemas.console import with_progress
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.tokenization.batch import Batch, Group, runs
from genrank.tokenization.reader import SampleReader

CANDIDATES_JUDGED = 50_000
"""Candidates that importance is measured on at most, from the first of the judged days on."""


def permutation_importance(
    model: Model, schema: Schema, config: EvaluateConfig, samples: Path, ranks: Ranks
) -> dict[str, list[Importance]]:
    """Binary label -> every feature that a batch holds, and every group as a whole, largest drop first.

    A drop is the model's GAUC less that with the feature shuffled, on the same candidates, with its paired bootstrap interval over users.
    """
    batches: list[Batch] = []
    reader = SampleReader(
        samples, schema, config.dates, view="user_day", token_budget=config.token_budget, shuffle=True, seed=config.seed
    )
    for batch in reader:
        batches.append(batch)
        if sum(len(each.item) for each in batches) >= CANDIDATES_JUDGED:
            break
    labels = [label.name for label in schema.labels if label.kind == "binary"]

    def judged(parts: Sequence[Batch]) -> dict[str, Predictions]:
        found = {label: Predictions() for label in labels}
        for batch, scores in predict(model, parts, schema, ranks):
            for label, each in found.items():
                each.update(candidate_users(batch), batch.labels[label], scores[label], batch.weights[label])
        return found

    whole = judged(batches)
    found: dict[str, list[Importance]] = {label: [] for label in labels}
    wanted = list(shuffled_parts(schema, batches))
    for group, feature in with_progress(wanted, "importance"):
        changed = judged(
            [shuffled(batch, group, feature, schema, config.seed + at) for at, batch in enumerate(batches)]
        )
        for label in labels:
            if len(whole[label]):
                drop = paired_differences(
                    [whole[label]], [changed[label]], bootstrap=config.bootstrap, seed=config.seed, auc=False
                )["gauc"]
                found[label].append(Importance(group=group, feature=feature, drop=drop))
    return {
        label: sorted(each, key=lambda one: one.drop.value if one.drop.value is not None else -1.0, reverse=True)
        for label, each in found.items()
        if each
    }


def shuffled_parts(schema: Schema, batches: Sequence[Batch]) -> Iterator[tuple[str, str | None]]:
    """(group, feature) of all that batches hold, and (group, None) for each group as a whole."""
    for name, _ in schema.groups():
        held = batches[0].groups[name].features if batches else {}
        if held or name not in (USER, CANDIDATES):
            yield name, None
        yield from ((name, feature) for feature in sorted(held))


def shuffled(batch: Batch, group: str, feature: str | None, schema: Schema, seed: int) -> Batch:
    """The batch with a feature's values in another order, or all of a group's.

    As a whole, users and candidates exchange all of their features, and users their histories; of the realtime events nobody sees any, since
    what each candidate sees of them is its own.
    """
    rows = batch.groups[group]
    generator = torch.Generator().manual_seed(seed)

    def order(count: int) -> Tensor:
        return torch.randperm(count, generator=generator).to(rows.ts.device)

    if feature is not None:
        leaf, own = rows.features[feature], order(len(rows.ts))
        moved = leaf[own] if isinstance(leaf, Tensor) else leaf.take(own)
        changed = Group(rows.offsets, rows.ts, rows.features | {feature: moved}, rows.host_offsets)
    elif schema.realtime and group == schema.realtime.name:
        none = torch.zeros(0, dtype=torch.int64, device=rows.ts.device)
        empty = rows.take(none, torch.zeros_like(rows.offsets))
        return dataclasses.replace(
            batch,
            groups=batch.groups | {group: empty},
            candidate_sees=torch.zeros_like(batch.candidate_sees),
            realtime_sees=batch.realtime_sees[:0],
            realtime_available=batch.realtime_available[:0],
        )
    elif group in (USER, CANDIDATES):
        moved_rows = rows.take(order(len(rows.ts)), rows.offsets)
        changed = Group(rows.offsets, rows.ts, moved_rows.features, rows.host_offsets)
    else:
        users = order(len(batch))
        offsets, of_users = runs(rows.offsets[users], rows.offsets[users + 1])
        changed = rows.take(of_users, offsets)
    return dataclasses.replace(batch, groups=batch.groups | {group: changed})
