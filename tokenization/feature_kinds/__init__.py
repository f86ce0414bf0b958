"""Feature kinds on the tensor side: how a batch gives the values of a feature, one file a family.

A kind that samples store is read as it is stored and needs nothing here. A derived kind from outside the package is a function
(feature, token group) -> values and one call of `register_values`; or, of a candidate's number that is computed from others or compared
within its request, (feature, candidates of stored rows) -> numbers and one call of `register_number`.
"""

from genrank.tokenization.feature_kinds.arithmetic import arithmetic
from genrank.tokenization.feature_kinds.hashed_cross import crossed_ids
from genrank.tokenization.feature_kinds.interface import (
    GroupView,
    StoredCandidates,
    feature_values,
    number_function,
    register_number,
    register_values,
)
from genrank.tokenization.feature_kinds.times import part_of_time, time_gap
from genrank.tokenization.feature_kinds.vectors import stored_vectors
from genrank.tokenization.feature_kinds.within_request import request_size, within_request

register_values("crossed", crossed_ids)
register_values("time_part", part_of_time)
register_values("time_gap", time_gap)
register_values("vector", stored_vectors)
register_number("arithmetic", arithmetic)
register_number("request_size", request_size)
register_number("within_request", within_request)

__all__ = [
    "GroupView",
    "StoredCandidates",
    "feature_values",
    "number_function",
    "register_number",
    "register_values",
]
