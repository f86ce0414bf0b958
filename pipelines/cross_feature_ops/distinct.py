"""`distinct`: how many different values there were."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrank.pipelines.column_roles import Role
from genrank.pipelines.cross_feature_ops.base import Evaluation, Question
from genrank.schemas import CrossFeature


class DistinctEvaluation(Evaluation):
    """The number of different values."""

    name = "distinct"
    keyed_by_value = True

    def value_role(self, feature: CrossFeature) -> Role:
        """As ids, strings by their hash."""
        return "id"

    def answer(self, question: Question) -> NDArray[Any]:
        """0 without any."""
        return question.distinct()

    def saw_events(self, feature: CrossFeature, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Not 0."""
        seen: NDArray[np.bool_] = values != 0
        return seen
