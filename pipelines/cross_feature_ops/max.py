"""`max`: the largest value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrank.pipelines.column_roles import Role
from genrank.pipelines.cross_feature_ops.base import Evaluation, Question
from genrank.schemas import CrossFeature


class MaxEvaluation(Evaluation):
    """The largest of the values that are there."""

    name = "max"

    def value_role(self, feature: CrossFeature) -> Role:
        """As a number of which tiles keep the largest."""
        return "largest"

    def answer(self, question: Question) -> NDArray[Any]:
        """NaN without any."""
        values, chosen = question.values()
        return question.scan.largest(question.queries, question.window, values.astype(np.float64), chosen)
