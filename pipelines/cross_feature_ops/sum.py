"""`sum`: exact before it is rounded, so that the order of events doesn't matter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrank.pipelines.column_roles import Role
from genrank.pipelines.cross_feature_ops.base import Evaluation, Question
from genrank.schemas import CrossFeature


class SumEvaluation(Evaluation):
    """The sum of the values that are there."""

    name = "sum"

    def value_role(self, feature: CrossFeature) -> Role:
        """As float64."""
        return "amount"

    def answer(self, question: Question) -> NDArray[Any]:
        """0 without any."""
        return question.total()[1]

    def saw_events(self, feature: CrossFeature, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Not 0."""
        seen: NDArray[np.bool_] = values != 0
        return seen
