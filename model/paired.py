"""Differences between models on the same candidates, with intervals: users are drawn once for both, so what they share cancels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrank.model.metrics import Estimate, Predictions, RetrievalMetrics


def paired_differences(
    first: Sequence[Predictions | RetrievalMetrics],
    second: Sequence[Predictions | RetrievalMetrics],
    *,
    bootstrap: int,
    confidence: float = 0.95,
    seed: int = 0,
    auc: bool = True,
) -> dict[str, Estimate]:
    """Each metric of `first` less that of `second`, both means over their runs, with the percentile interval of the difference.

    Args:
        first, second: predictions of the same candidates, a `Predictions` a run (a seed); or ranks of the same queries.
        auc: whether AUC over all users, the costly one, is among them; without, it is None.
        bootstrap: replicates; users are drawn with replacement. The spread between seeds is not in the interval.

    Raises:
        ValueError: they are not of the same users.
    """
    replicators = [[each.replicator() for each in side] for side in (first, second)]
    users = {each.users for side in replicators for each in side}
    if len(users) != 1:
        raise ValueError("paired differences are of models that were judged on the same users")
    (count,) = users

    def difference(counts: np.ndarray) -> dict[str, float]:
        means = []
        for side in replicators:
            found = [each.metrics(counts, auc=auc) for each in side]
            means.append({name: float(np.mean([one[name] for one in found])) for name in found[0]})
        return {name: value - means[1][name] for name, value in means[0].items()}

    point = difference(np.ones(count))
    generator = np.random.default_rng(seed)
    drawn = [
        difference(np.bincount(generator.integers(0, count, count), minlength=count).astype(np.float64))
        for _ in range(bootstrap)
    ]
    tail = (1 - confidence) / 2
    result = {}
    for name, value in point.items():
        known = np.array([each[name] for each in drawn if np.isfinite(each[name])])
        low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
        result[name] = Estimate(*(float(x) if np.isfinite(x) else None for x in (value, low, high)))
    return result
