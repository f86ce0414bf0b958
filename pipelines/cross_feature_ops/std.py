"""`std`: the standard deviation, of exact sums, so that a large offset doesn't cancel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrank.pipelines.column_roles import Role
from genrank.pipelines.cross_feature_ops.base import Evaluation, Question
from genrank.pipelines.exact_sums import Parts
from genrank.pipelines.merge_scan import Int
from genrank.pipelines.spread import moments, squared_differences
from genrank.schemas import CrossFeature


class StdEvaluation(Evaluation):
    """The population standard deviation of the values that are there."""

    name = "std"

    def value_role(self, feature: CrossFeature) -> Role:
        """As float64, of which tiles keep mean and squared differences."""
        return "spread"

    def answer(self, question: Question) -> NDArray[Any]:
        """NaN without any, 0 of one."""
        assert question.value is not None
        means, chosen = question.values()
        held = question.value.squares in question.events.column_names
        squares = question.events.column(question.value.squares).to_numpy() if held else np.zeros(len(means))

        def terms(rows: Int) -> tuple[Parts, ...]:
            return moments(question.scan.merged_from(rows), means[rows], squares[rows])

        count, (sums, of_squares) = question.scan.totals(question.queries, question.window, terms, chosen)
        spread = np.sqrt(squared_differences(count, sums, of_squares)) / np.maximum(count, 1)
        return question.queries.scatter(np.where(count > 0, spread, np.nan))
