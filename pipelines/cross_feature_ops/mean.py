"""`mean`: a sum over a count."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrank.pipelines.column_roles import Role
from genrank.pipelines.cross_feature_ops.base import Evaluation, Question
from genrank.schemas import CrossFeature


class MeanEvaluation(Evaluation):
    """The mean of the values that are there."""

    name = "mean"

    def value_role(self, feature: CrossFeature) -> Role:
        """As float64."""
        return "amount"

    def answer(self, question: Question) -> NDArray[Any]:
        """NaN without any."""
        count, total = question.total()
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)
