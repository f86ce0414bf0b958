"""`decayed_sum`: a sum whose events halve in weight with time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrank.pipelines import decay
from genrank.pipelines.column_roles import Column
from genrank.pipelines.cross_feature_ops.base import Evaluation, Question
from genrank.pipelines.exact_sums import Parts, rounded, split
from genrank.pipelines.merge_scan import Int, Queries
from genrank.schemas import CrossFeature
from genrank.schemas.base import parse_duration
from genrank.schemas.features.cross_feature import MOST_HALF_LIVES


class DecayedSumEvaluation(Evaluation):
    """The sum of value * 2^(-(t - ts) / half-life) of the values that are there."""

    name = "decayed_sum"
    newest = "time"

    def value_column(self, feature: CrossFeature) -> Column:
        """As float64, of which tiles keep the sum as of their newest event."""
        return Column("decayed", feature.value or "", half_life=parse_duration(feature.half_life or ""))

    def answer(self, question: Question) -> NDArray[Any]:
        """0 without any."""
        assert question.value is not None
        values, chosen = question.values()
        ts: Int = question.events.column("ts").to_numpy()
        half_life, queries = question.value.half_life, question.queries
        # Of one block of time after another: over few half-lives an exact sum has few parts.
        block = queries.times // half_life // MOST_HALF_LIVES
        answers = np.zeros(len(block))
        for number in np.unique(block).tolist():
            own = np.flatnonzero(block == number)
            asked = Queries(queries.keys[own], queries.times[own], queries.places[own])
            origin = number * MOST_HALF_LIVES

            def terms(rows: Int, origin: int = origin) -> tuple[Parts, ...]:
                return (split(decay.scaled(values[rows], ts[rows], half_life, origin)),)

            _, (total,) = question.scan.totals(asked, question.window, terms, chosen)
            answers[own] = decay.at(rounded(total), asked.times, half_life, origin)
        return queries.scatter(answers)

    def saw_events(self, feature: CrossFeature, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Not 0."""
        seen: NDArray[np.bool_] = values != 0
        return seen
