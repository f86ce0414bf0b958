"""A candidate's number beside those of its request, each comparison a function of groups of numbers side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from genrank.schemas.features import RequestSize, WithinRequest
from genrank.schemas.features.within_request import Comparison
from genrank.tokenization.batch import Ints
from genrank.tokenization.feature_kinds.interface import StoredCandidates
from genrank.tokenization.peers import Floats


def within_request(feature: WithinRequest, candidates: StoredCandidates) -> Floats:
    """[C] float64: the comparison that `what` names; NaN where the number is missing."""
    return candidates.peers.compare(candidates.number(feature.of), COMPARISONS[feature.what])


def request_size(feature: RequestSize, candidates: StoredCandidates) -> Floats:
    """[C] float64: candidates compared with, itself included."""
    return candidates.peers.sizes


# ---------------------------------------------------------------------- comparisons
#
# (values [M] float64, NaN where missing; offsets [G+1]: group g is values[offsets[g]:offsets[g+1]], none of them empty) -> [M] float64,
# NaN where the value is.


def rank(values: Floats, offsets: Ints) -> Floats:
    """From 1 for the largest; equal values share the mean of their ranks."""
    ascending, present = _ascending(values, offsets)
    return present + 1 - ascending


def fraction_rank(values: Floats, offsets: Ints) -> Floats:
    """Fraction of the other values that are smaller, equal ones counted half; 0.5 without others."""
    ascending, present = _ascending(values, offsets)
    fraction = np.where(present > 1, (ascending - 1) / np.maximum(present - 1, 1), 0.5)
    return np.where(np.isnan(values), np.nan, fraction)


def difference_to_mean(values: Floats, offsets: Ints) -> Floats:
    """Value less the mean."""
    present = ~np.isnan(values)
    counts = np.add.reduceat(present.astype(np.float64), offsets[:-1])
    sums = np.add.reduceat(np.where(present, values, 0.0), offsets[:-1])
    return values - _spread(sums / np.maximum(counts, 1), offsets)


def difference_to_max(values: Floats, offsets: Ints) -> Floats:
    """Value less the largest."""
    return values - _spread(np.fmax.reduceat(values, offsets[:-1]), offsets)


def share(values: Floats, offsets: Ints) -> Floats:
    """Value over the sum of absolute values; NaN where that is 0."""
    sums = np.add.reduceat(np.abs(np.nan_to_num(values, nan=0.0)), offsets[:-1])
    return values / _spread(np.where(sums > 0, sums, np.nan), offsets)


COMPARISONS: Mapping[Comparison, Callable[[Floats, Ints], Floats]] = {
    "rank": rank,
    "fraction_rank": fraction_rank,
    "difference_to_mean": difference_to_mean,
    "difference_to_max": difference_to_max,
    "share": share,
}


def _spread(of_group: Floats, offsets: Ints) -> Floats:
    spread: Floats = np.repeat(of_group, np.diff(offsets))
    return spread


def _ascending(values: Floats, offsets: Ints) -> tuple[Floats, Floats]:
    """([M] rank from 1 for the smallest, ties averaged, NaN where missing; [M] how many of the group are present)."""
    sizes = np.diff(offsets)
    group = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((values, group))  # within a group NaN comes last
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, (group[1:] != group[:-1]) | (ordered[1:] != ordered[:-1])])
    ties = np.diff(np.r_[starts, len(values)])
    first = starts - offsets[group[starts]]  # in its group, from 0
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(first + (ties + 1) / 2, ties)
    present = np.add.reduceat((~np.isnan(values)).astype(np.float64), offsets[:-1])
    return np.where(np.isnan(values), np.nan, ranks), _spread(present, offsets)
