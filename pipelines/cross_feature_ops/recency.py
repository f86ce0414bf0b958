"""`recency`: how long ago the newest event was."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrank.pipelines.cross_feature_ops.base import Evaluation, Question


class RecencyEvaluation(Evaluation):
    """Seconds since the newest event."""

    name = "recency"
    newest = "time"

    def answer(self, question: Question) -> NDArray[Any]:
        """NaN without any."""
        then, seen = question.newest_time()
        return np.where(seen, (question.at - then) / 1000.0, np.nan)
