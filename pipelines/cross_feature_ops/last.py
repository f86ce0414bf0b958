"""`last`: the newest value."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from genrank.pipelines.column_roles import Role
from genrank.pipelines.cross_feature_ops.base import Evaluation, Question
from genrank.schemas import CrossFeature


class LastEvaluation(Evaluation):
    """The value of the newest event that has one; of several at the same time, of that with the greatest id."""

    name = "last"
    newest = "event"

    def value_role(self, feature: CrossFeature) -> Role:
        """An id with a table, a number without."""
        return "id" if feature.stored == "id" else "number"

    def answer(self, question: Question) -> NDArray[Any]:
        """MISSING_ID or NaN without any."""
        return question.newest_value()
