"""`count`: a sum of ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrank.pipelines.cross_feature_ops.base import Evaluation, Question
from genrank.schemas import CrossFeature


class CountEvaluation(Evaluation):
    """The number of events that meet `where`."""

    name = "count"

    def answer(self, question: Question) -> NDArray[Any]:
        """0 without any."""
        return question.count()

    def saw_events(self, feature: CrossFeature, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Not 0."""
        seen: NDArray[np.bool_] = values != 0
        return seen
