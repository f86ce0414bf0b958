"""`last`: the newest value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrank.pipelines.column_roles import Role
from genrank.pipelines.cross_feature_ops.base import Evaluation, Question
from genrank.schemas import CrossFeature
from genrank.schemas.ids import MISSING_ID


class LastEvaluation(Evaluation):
    """The value of the newest event that has one; of several at the same time, of that with the greatest id."""

    name = "last"
    newest = "event"

    def value_role(self, feature: CrossFeature) -> Role:
        """An id with a table, a number without."""
        return "id" if feature.stored == "id" else "number"

    def answer(self, question: Question) -> NDArray[Any]:
        """MISSING_ID or NaN without any."""
        assert question.value is not None
        values, chosen = question.values()
        row = question.scan.newest(question.queries, question.window, chosen)
        missing = MISSING_ID if question.value.role == "id" else np.float32("nan")
        return np.append(values, np.array([missing], values.dtype))[row]
