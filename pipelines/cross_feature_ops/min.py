"""`min`: the smallest value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrank.pipelines.column_roles import Role
from genrank.pipelines.cross_feature_ops.base import Evaluation, Question
from genrank.schemas import CrossFeature


class MinEvaluation(Evaluation):
    """The smallest of the values that are there."""

    name = "min"

    def value_role(self, feature: CrossFeature) -> Role:
        """As a number of which tiles keep the smallest."""
        return "smallest"

    def answer(self, question: Question) -> NDArray[Any]:
        """NaN without any."""
        values, chosen = question.values()
        return 0.0 - question.scan.largest(question.queries, question.window, -values.astype(np.float64), chosen)
