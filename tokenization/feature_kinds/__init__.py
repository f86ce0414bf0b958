"""Feature kinds on the tensor side: how a batch gives the values of a feature, one file a family.

A kind that samples store is read as it is stored and needs nothing here. A derived kind from outside the package is a function
(feature, token group) -> values and one call of `register_values`.
"""

from genrank.tokenization.feature_kinds.hashed_cross import crossed_ids
from genrank.tokenization.feature_kinds.interface import GroupView, feature_values, register_values
from genrank.tokenization.feature_kinds.times import part_of_time, time_gap

register_values("crossed", crossed_ids)
register_values("time_part", part_of_time)
register_values("time_gap", time_gap)

__all__ = ["GroupView", "feature_values", "register_values"]
