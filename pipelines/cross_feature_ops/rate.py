"""`rate`: smoothed successes over trials."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrank.pipelines.cross_feature_ops.base import Evaluation, Question
from genrank.schemas import CrossFeature


class RateEvaluation(Evaluation):
    """(count of `where` + prior * strength) / (count of all + strength)."""

    name = "rate"

    def answer(self, question: Question) -> NDArray[Any]:
        """The prior without any trial."""
        feature = question.feature
        hits = question.count().astype(np.float64)
        weight = question.trials(feature.per or feature.source).astype(np.float64) + feature.strength
        smoothed = hits + feature.prior * feature.strength
        return np.where(weight > 0, smoothed / np.where(weight > 0, weight, 1), feature.prior)

    def saw_events(self, feature: CrossFeature, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Not the prior."""
        seen: NDArray[np.bool_] = values != np.float32(feature.prior)
        return seen
