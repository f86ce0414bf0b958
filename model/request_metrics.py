"""How well each request is ranked: AUC by request, MRR and NDCG@10, over requests that hold a positive and a negative.

A list is shown a request at a time, so this is what its user sees; GAUC by user also counts orders between requests. float64 NumPy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

REQUEST_METRICS = ("request_auc", "mrr", "ndcg@10")
CUTOFF = 10
"""K of NDCG@K."""


class RequestMetrics:
    """The metrics over N candidates, under any weights of the users: `metrics(ones)` are the values, other weights bootstrap replicates.

    | metric | of a request | averaged over requests by |
    |---|---|---|
    | `request_auc` | AUC, ties counted half, weighted | the sum of its candidates' weights, as GAUC is over users |
    | `mrr` | 1 / rank of the first positive; negatives that tie with it rank before it | one each |
    | `ndcg@10` | DCG over that of the ideal order, gain 1 a positive; equal scores share the mean gain (McSherry and Najork, ECIR 2008), as scikit-learn's `ndcg_score` | one each |

    Args:
        auc: per distinct key in ascending order, (keys, AUC or NaN, sum of weights) of candidates: `metrics.auc_by_key`'s result for
            `request_codes`.
        codes: [N], of `request_codes`.
        rows: [N]: the user of each candidate, from 0 to users - 1.
        labels, scores: [N]; a label above 0.5 is positive.
    """

    def __init__(
        self, auc: tuple[Ints, Floats, Floats], codes: Ints, rows: Ints, users: int, labels: Floats, scores: Floats
    ) -> None:
        _, each, impressions = auc
        valid = ~np.isnan(each)
        order = np.lexsort((-scores, codes))
        codes, ordered, positive = codes[order], scores[order], labels[order] > 0.5
        first = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]][: len(codes)])
        owner = rows[order][first]
        mrr, ndcg = _reciprocal_rank(first, ordered, positive), _ndcg(first, codes, ordered, positive)

        def by_user(values: Floats) -> Floats:
            return np.bincount(owner[valid], values[valid], users).astype(np.float64)

        self._auc, self._impressions = by_user(np.nan_to_num(each) * impressions), by_user(impressions)
        self._mrr, self._ndcg, self._requests = by_user(mrr), by_user(ndcg), by_user(np.ones(len(each)))

    def metrics(self, counts: Floats) -> dict[str, float]:
        """By name, with each user counted so many times ([users]); NaN without a request of both classes."""
        impressions, requests = float(self._impressions @ counts), float(self._requests @ counts)
        if not requests:
            return dict.fromkeys(REQUEST_METRICS, float("nan"))
        sums = (
            float(self._auc @ counts) / impressions,
            *(float(s @ counts) / requests for s in (self._mrr, self._ndcg)),
        )
        return dict(zip(REQUEST_METRICS, sums, strict=True))


def request_codes(users: Ints, requests: Ints) -> Ints:
    """[N] int64: requests numbered from 0; one id of two users is two requests."""
    order = np.lexsort((requests, users))
    changes = (np.diff(users[order]) != 0) | (np.diff(requests[order]) != 0)
    codes = np.empty(len(order), np.int64)
    codes[order] = np.cumsum(np.r_[False, changes][: len(order)])
    return codes


def _reciprocal_rank(first: Ints, scores: Floats, positive: NDArray[np.bool_]) -> Floats:
    """Per request whose candidates begin at `first`, largest score first."""
    if not len(first):
        return np.zeros(0)
    best = np.maximum.reduceat(np.where(positive, scores, -np.inf), first)
    sizes = np.diff(np.r_[first, len(scores)])
    before = np.add.reduceat((~positive & (scores >= np.repeat(best, sizes))).astype(np.float64), first)
    return 1 / (1 + before)


def _ndcg(first: Ints, codes: Ints, scores: Floats, positive: NDArray[np.bool_]) -> Floats:
    """As `_reciprocal_rank`; NaN without a positive."""
    if not len(first):
        return np.zeros(0)
    sizes = np.diff(np.r_[first, len(scores)])
    place = np.arange(len(scores)) - np.repeat(first, sizes)
    discount = np.where(place < CUTOFF, 1 / np.log2(place + 2), 0.0)
    ties = np.flatnonzero(np.r_[True, (codes[1:] != codes[:-1]) | (scores[1:] != scores[:-1])])
    gains = np.add.reduceat(positive.astype(np.float64), ties) / np.diff(np.r_[ties, len(scores)])
    of_ties = gains * np.add.reduceat(discount, ties)
    dcg = np.add.reduceat(of_ties, np.searchsorted(ties, first))
    ideal = np.r_[0.0, np.cumsum(1 / np.log2(np.arange(CUTOFF) + 2))]
    positives = np.add.reduceat(positive.astype(np.int64), first)
    with np.errstate(invalid="ignore"):
        return np.where(positives > 0, dcg / ideal[np.minimum(positives, CUTOFF)], np.nan)
