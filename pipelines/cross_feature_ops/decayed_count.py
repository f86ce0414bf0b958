"""`decayed_count`: a decayed sum of ones."""

from __future__ import annotations

from genrank.pipelines.cross_feature_ops.decayed_sum import DecayedSumEvaluation


class DecayedCountEvaluation(DecayedSumEvaluation):
    """The sum of 2^(-(t - ts) / half-life) of the events that meet `where`."""

    name = "decayed_count"
