"""Boundaries of quantile buckets, fitted on training days."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genrank.schemas.schema import Schema
from genrank.tokenization.features import GroupEncoder, fitted_features
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.transforms import buckets_of

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
    reader = SampleReader(samples_root, schema, dates, view="user_day", shuffle=False)
    share = max(1, -(-reader.stored_rows // max_rows))
    reader.row_groups = reader.row_groups[::share]
    plan = make_plan(schema)
    unfitted = {f"{group}.{name}": [0.0] for group, name, _ in wanted}
    encoders = {group: GroupEncoder(plan, group, unfitted) for group, _, _ in wanted}
    values: dict[str, list[np.ndarray]] = {key: [] for key in unfitted}
    for batch in reader:
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
