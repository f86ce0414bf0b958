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
        row = question.scan.newest(question.queries, question.window, question.chosen)
        then = np.append(question.events.column("ts").to_numpy(), 0)[row]
        return np.where(row >= 0, (question.at - then) / 1000.0, np.nan)
