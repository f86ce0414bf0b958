"""What is fitted on training days before anything is learned: boundaries of quantile buckets, moments of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from genrank.schemas.schema import Schema
from genrank.tokenization.features import GroupEncoder, GroupInputs, fitted_features, scalar_names
from genrank.tokenization.plan import Plan, make_plan
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.transforms import buckets_of
from genrank.tokenization.transforms.scalars import ScalarInputs

FITTED_ROWS = 1 << 18
"""Stored rows that boundaries are fitted on at most, in row groups spread evenly over the days."""


def fit_boundaries(
    samples_root: Path | str, schema: Schema, dates: Sequence[str], *, max_rows: int = FITTED_ROWS
) -> dict[str, list[float]]:
    """`<group>.<feature>` -> ascending boundaries, for every number in quantile buckets; missing values count for nothing.

    A value that makes up more than a bucket's share leaves fewer boundaries than buckets; so does a feature that is always
    missing, which gets none. Deterministic. Pass training days only: boundaries that saw the evaluation's days leak them.

    Raises:
        UserError: as `SampleReader`.
    """
    wanted = fitted_features(schema)
    if not wanted:
        return {}
    values: dict[str, list[np.ndarray]] = {f"{group}.{name}": [] for group, name, _ in wanted}
    encoders = _encoders(make_plan(schema))
    for batch in _spread(samples_root, schema, dates, max_rows):
        for group, name, _ in wanted:
            number = encoders[group].values(encoders[group].view(batch), name)
            values[f"{group}.{name}"].append(number[~number.isnan()].double().numpy())
    fitted = {}
    for group, name, transform in wanted:
        found = np.concatenate([np.zeros(0), *values[f"{group}.{name}"]])
        buckets = buckets_of(transform)
        assert buckets is not None
        fitted[f"{group}.{name}"] = buckets.fit(transform, found)
    return fitted


def fit_moments(
    samples_root: Path | str, schema: Schema, dates: Sequence[str], *, max_rows: int = FITTED_ROWS
) -> dict[str, tuple[float, float]]:
    """`<group>.<feature>` -> (mean, standard deviation), for every `Dense` and `Log1p` number, of its transformed values; missing
    values count for nothing. A number without two different values gets a deviation of 1. Deterministic; pass training days only.

    Raises:
        UserError: as `SampleReader`.
    """
    plan = make_plan(schema)
    names = {group: scalar_names(schema, group) for group, _ in schema.groups()}
    sums = {group: torch.zeros(3, len(own), dtype=torch.float64) for group, own in names.items() if own}
    if not sums:
        return {}
    encoders = _encoders(plan)
    inputs = {group: GroupInputs(plan, group).families[ScalarInputs.STATE_NAME] for group in sums}
    for batch in _spread(samples_root, schema, dates, max_rows):
        for group in sums:
            encoder = encoders[group]
            view = encoder.view(batch)
            numbers = torch.stack([encoder.values(view, name) for name in names[group]])
            columns = inputs[group].prepare(numbers).double()
            value, present = columns[:, ::2], 1 - columns[:, 1::2]
            sums[group] += torch.stack([present.sum(0), (value * present).sum(0), (value.square() * present).sum(0)])
    fitted = {}
    for group, (count, first, second) in sums.items():
        mean = first / count.clamp(min=1)
        variance = second / count.clamp(min=1) - mean.square()
        # Below what float64 sums resolve, a number is constant.
        deviation = torch.where(variance > 1e-9 * (1 + mean.square()), variance.clamp(min=0).sqrt(), 1.0)
        for name, m, d in zip(names[group], mean.tolist(), deviation.tolist(), strict=True):
            fitted[f"{group}.{name}"] = (m, d)
    return fitted


def _encoders(plan: Plan) -> dict[str, GroupEncoder]:
    """An encoder a token group, to read raw numbers with."""
    unfitted = {f"{group}.{name}": [0.0] for group, name, _ in fitted_features(plan.schema)}
    return {group: GroupEncoder(plan, group, unfitted) for group, _ in plan.schema.groups()}


def _spread(samples_root: Path | str, schema: Schema, dates: Sequence[str], max_rows: int) -> SampleReader:
    """A reader of at most so many stored rows, in row groups spread evenly over the days."""
    reader = SampleReader(samples_root, schema, dates, view="user_day", shuffle=False)
    share = max(1, -(-reader.stored_rows // max_rows))
    reader.row_groups = reader.row_groups[::share]
    return reader
