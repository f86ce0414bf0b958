"""How good a ranking is: exact AUC, GAUC, NE, logloss and calibration with bootstrap intervals by user; HR, NDCG and MRR.

Everything here is float64 NumPy over the predictions themselves (24 bytes a candidate): an exact AUC needs every score, and a
binned one moves with its bins. `Predictions` streams: update batch by batch, gather over ranks, compute once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from genrank.model.request_metrics import REQUEST_METRICS, RequestMetrics, request_codes

Floats = NDArray[np.float64]
Arrays = tuple[NDArray[np.int64], Floats, Floats, Floats, NDArray[np.int64]]
"""Users, labels, scores, weights and requests of candidates."""

BINARY_METRICS = ("auc", "gauc", "ne", "logloss", "calibration")
ORDER_METRICS = ("auc", "gauc", *REQUEST_METRICS)
"""Those that ask only for the order of scores, not for probabilities."""
VALUE_METRICS = ("rmse", "mae", "bias")

_PROBABILITY_FLOOR = 1e-7
"""float32 sigmoids reach 0 and 1 exactly; the logloss of one such candidate must not be infinite."""


@dataclass(frozen=True)
class Estimate:
    """A metric and its bootstrap interval; None where it is undefined (labels of one class, no candidate)."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """As metrics.json holds it."""
        return {"value": self.value, "low": self.low, "high": self.high}


# ---------------------------------------------------------------------- plain functions


def auc(labels: Floats, scores: Floats, weights: Floats | None = None) -> float:
    """Area under the ROC curve, ties counted half, weighted; NaN if one class is missing. Equals sklearn's `roc_auc_score`.

    Args:
        labels, scores, weights: [N]; a label above 0.5 is positive; weights default to 1.
    """
    keys = np.zeros(len(scores), np.int64)
    return float(auc_by_key(keys, labels, scores, weights)[1][0]) if len(scores) else float("nan")


def gauc(users: NDArray[np.int64], labels: Floats, scores: Floats, weights: Floats | None = None) -> float:
    """AUC within each user, averaged with the user's impressions (sum of weights) as weight; users whose labels are all of
    one class are skipped (Zhu et al., KDD 2017, arXiv:1706.06978, equation 7). NaN if every user is skipped.
    """
    if not len(scores):
        return float("nan")
    _, each, impressions = auc_by_key(users, labels, scores, weights)
    valid = ~np.isnan(each)
    return float(np.average(each[valid], weights=impressions[valid])) if valid.any() else float("nan")


def logloss(labels: Floats, scores: Floats, weights: Floats | None = None) -> float:
    """Weighted mean cross entropy in nats; scores are probabilities."""
    weights = np.ones_like(scores) if weights is None else weights
    return float(np.average(_cross_entropy(labels, scores), weights=weights)) if weights.sum() else float("nan")


def normalized_entropy(labels: Floats, scores: Floats, weights: Floats | None = None) -> float:
    """logloss / entropy of the base rate (He et al., ADKDD 2014): below 1 beats a constant. NaN with one class."""
    weights = np.ones_like(scores) if weights is None else weights
    return _ne(
        float((weights * _cross_entropy(labels, scores)).sum()), float((weights * labels).sum()), float(weights.sum())
    )


def calibration(labels: Floats, scores: Floats, weights: Floats | None = None) -> float:
    """Sum of predictions / sum of labels; NaN without a positive."""
    weights = np.ones_like(scores) if weights is None else weights
    positives = (weights * labels).sum()
    return float((weights * scores).sum() / positives) if positives else float("nan")


def _cross_entropy(labels: Floats, scores: Floats) -> Floats:
    p = np.clip(scores, _PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR)
    return -(labels * np.log(p) + (1 - labels) * np.log1p(-p))


def _ne(loss: float, positives: float, total: float) -> float:
    if not 0 < positives < total:
        return float("nan")
    rate = positives / total
    return float(loss / total / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def auc_by_key(
    keys: NDArray[np.int64], labels: Floats, scores: Floats, weights: Floats | None
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Per distinct key, in ascending order: (key, AUC within it or NaN, sum of weights), ties counted half, weighted.

    Args:
        keys, labels, scores, weights: [N], of at least one candidate; weights default to 1.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    order = np.lexsort((scores, keys))
    keys, scores = keys[order], scores[order]
    positive = np.where(labels[order] > 0.5, weights[order], 0.0)
    negative = weights[order] - positive
    # One entry per (key, score): candidates with equal scores tie.
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]) | (scores[1:] != scores[:-1])])
    p, n = np.add.reduceat(positive, starts), np.add.reduceat(negative, starts)
    below = np.cumsum(n) - n
    first = np.flatnonzero(np.r_[True, keys[starts][1:] != keys[starts][:-1]])
    size = np.diff(np.r_[first, len(starts)])
    below -= np.repeat(below[first], size)
    wins = np.add.reduceat(p * (below + 0.5 * n), first)
    total_p, total_n = np.add.reduceat(p, first), np.add.reduceat(n, first)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.where((total_p > 0) & (total_n > 0), wins / (total_p * total_n), np.nan)
    return keys[starts][first], each, total_p + total_n


# ---------------------------------------------------------------------- streaming


@dataclass
class Predictions:
    """One task's predictions as they come, and every metric over them.

    Candidates of weight 0 (labels not mature) are dropped as they arrive.
    """

    kind: str = "binary"
    """`binary` or `value`, as the label's."""
    by_request: bool = False
    """Whether binary metrics by request are among them: `update` is then given the requests."""
    _chunks: list[Arrays] = field(default_factory=list)

    def update(
        self,
        users: torch.Tensor,
        labels: torch.Tensor,
        scores: torch.Tensor,
        weights: torch.Tensor | None = None,
        requests: torch.Tensor | None = None,
    ) -> None:
        """Append [N] candidates: user ids, labels, probabilities (or values), weights, request ids."""
        columns = [t.detach().to("cpu", torch.float64).numpy() for t in (labels, scores)]
        w = np.ones(len(columns[0])) if weights is None else weights.detach().to("cpu", torch.float64).numpy()
        keep = w > 0
        u = users.detach().to("cpu", torch.int64).numpy()
        r = np.zeros_like(u) if requests is None else requests.detach().to("cpu", torch.int64).numpy()
        self._chunks.append((u[keep], columns[0][keep], columns[1][keep], w[keep], r[keep]))

    def arrays(self) -> Arrays:
        """(users, labels, scores, weights, requests), each [N], in order of arrival."""
        if not self._chunks:
            return np.zeros(0, np.int64), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, np.int64)
        if len(self._chunks) > 1:
            self._chunks = [tuple(np.concatenate(column) for column in zip(*self._chunks, strict=True))]  # type: ignore[list-item]
        return self._chunks[0]

    def gather(self) -> Predictions:
        """The predictions of all ranks, rank 0's first; itself outside torch.distributed."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        parts: list[object] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self.arrays())
        return Predictions(self.kind, self.by_request, list(parts))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.arrays()[0])

    def compute(
        self, *, bootstrap: int = 0, confidence: float = 0.95, seed: int = 0, auc_interval: bool = True
    ) -> dict[str, Estimate]:
        """Every metric of the task's kind, by name.

        Args:
            auc_interval: False leaves AUC over all users without one: the only metric whose replicates read every candidate.
            bootstrap: replicates for the intervals; users are drawn with replacement, because a user's candidates are not
                independent. 0: values only.
            confidence: the interval's coverage (percentile method).
        """
        users, labels, scores, weights, requests = self.arrays()
        arrays = (users, labels, scores, weights)
        point = _binary(*arrays) if self.kind == "binary" else _value(*arrays)
        ranked = self._ranked(*arrays, requests)
        if ranked:
            point |= ranked.metrics(np.ones(len(np.unique(users))))
        elif self.by_request and self.kind == "binary":
            point |= dict.fromkeys(REQUEST_METRICS, float("nan"))
        if not bootstrap or not len(users):
            return {name: Estimate(_finite(value)) for name, value in point.items()}
        generator = np.random.default_rng(seed)
        draw = self.replicator()
        replicates: dict[str, list[float]] = {name: [] for name in point}
        for _ in range(bootstrap):
            counts = np.bincount(generator.integers(0, draw.users, draw.users), minlength=draw.users).astype(np.float64)
            for name, value in draw.metrics(counts, auc=auc_interval).items():
                replicates[name].append(value)
        tail = (1 - confidence) / 2
        result = {}
        for name, value in point.items():
            known = np.array([v for v in replicates[name] if np.isfinite(v)])
            low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (float("nan"), float("nan"))
            result[name] = Estimate(_finite(value), _finite(float(low)), _finite(float(high)))
        return result

    def replicator(self) -> Replicator:
        """The metrics under any weights of the users, of at least one candidate."""
        users, labels, scores, weights, requests = self.arrays()
        ranked = self._ranked(users, labels, scores, weights, requests)
        make = _BinaryReplicates if self.kind == "binary" else _ValueReplicates
        return Replicator(make(users, labels, scores, weights), ranked)

    def _ranked(
        self, users: NDArray[np.int64], labels: Floats, scores: Floats, weights: Floats, requests: NDArray[np.int64]
    ) -> RequestMetrics | None:
        if not self.by_request or self.kind != "binary" or not len(users):
            return None
        codes = request_codes(users, requests)
        found, rows = np.unique(users, return_inverse=True)
        return RequestMetrics(auc_by_key(codes, labels, scores, weights), codes, rows, len(found), labels, scores)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _binary(users: NDArray[np.int64], labels: Floats, scores: Floats, weights: Floats) -> dict[str, float]:
    return {
        "auc": auc(labels, scores, weights),
        "gauc": gauc(users, labels, scores, weights),
        "ne": normalized_entropy(labels, scores, weights),
        "logloss": logloss(labels, scores, weights),
        "calibration": calibration(labels, scores, weights),
    }


def _value(users: NDArray[np.int64], labels: Floats, scores: Floats, weights: Floats) -> dict[str, float]:
    if not len(labels):
        return dict.fromkeys(VALUE_METRICS, float("nan"))
    error = scores - labels
    return {
        "rmse": float(np.sqrt(np.average(error**2, weights=weights))),
        "mae": float(np.average(np.abs(error), weights=weights)),
        "bias": float(np.average(error, weights=weights)),
    }


@dataclass(frozen=True)
class Replicator:
    """A task's metrics with each user counted so many times: ones give the values, other counts bootstrap replicates."""

    _whole: _BinaryReplicates | _ValueReplicates
    _ranked: RequestMetrics | None

    @property
    def users(self) -> int:
        """How many users there are, in ascending order of their ids."""
        return self._whole.users

    def metrics(self, counts: Floats, *, auc: bool = True) -> dict[str, float]:
        """By name; counts [users]. Without `auc`, AUC over all users is NaN."""
        return self._whole.metrics(counts, auc=auc) | (self._ranked.metrics(counts) if self._ranked else {})


class _BinaryReplicates:
    """The binary metrics under other user weights, without sorting again."""

    def __init__(self, users: NDArray[np.int64], labels: Floats, scores: Floats, weights: Floats) -> None:
        keys, each, impressions = auc_by_key(users, labels, scores, weights)
        self.users = len(keys)
        self.valid = ~np.isnan(each)
        self.each, self.impressions = np.nan_to_num(each), impressions
        row = np.searchsorted(keys, users)
        sums = (weights, weights * labels, weights * scores, weights * _cross_entropy(labels, scores))
        self.total, self.positives, self.predicted, self.loss = (np.bincount(row, s, len(keys)) for s in sums)
        order = np.argsort(scores, kind="stable")
        self.row = row[order]
        self.positive = np.where(labels[order] > 0.5, weights[order], 0.0)
        self.negative = weights[order] - self.positive
        self.starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])

    def metrics(self, counts: Floats, *, auc: bool = True) -> dict[str, float]:
        total, positives, predicted, loss = (
            float(s @ counts) for s in (self.total, self.positives, self.predicted, self.loss)
        )
        share = counts * self.impressions * self.valid
        nan = float("nan")
        return {
            "auc": self._auc(counts) if auc else nan,
            "gauc": float(share @ self.each / share.sum()) if share.sum() else nan,
            "ne": _ne(loss, positives, total),
            "logloss": loss / total if total else nan,
            "calibration": predicted / positives if positives else nan,
        }

    def _auc(self, counts: Floats) -> float:
        drawn = counts[self.row]
        p = np.add.reduceat(self.positive * drawn, self.starts)
        n = np.add.reduceat(self.negative * drawn, self.starts)
        wins, pairs = p @ (np.cumsum(n) - 0.5 * n), p.sum() * n.sum()
        return float(wins / pairs) if pairs else float("nan")


class _ValueReplicates:
    """The value metrics under other user weights."""

    def __init__(self, users: NDArray[np.int64], labels: Floats, scores: Floats, weights: Floats) -> None:
        _, row = np.unique(users, return_inverse=True)
        self.users = int(row.max()) + 1
        error = scores - labels
        sums = (weights, weights * error**2, weights * np.abs(error), weights * error)
        self.total, self.squared, self.absolute, self.error = (np.bincount(row, s, self.users) for s in sums)

    def metrics(self, counts: Floats, *, auc: bool = True) -> dict[str, float]:
        total = float(self.total @ counts)
        return {
            "rmse": float(np.sqrt(self.squared @ counts / total)),
            "mae": float(self.absolute @ counts / total),
            "bias": float(self.error @ counts / total),
        }


# ---------------------------------------------------------------------- retrieval


def target_ranks(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1-based rank of each row's target, int64 [N]; an item that ties with the target counts as before it, so that a
    constant scorer gains nothing.

    Args:
        scores: [N, items]; targets: [N] column of the target.
    """
    own = scores.gather(1, targets[:, None])
    return (scores >= own).sum(1)


@dataclass
class QueryReplicator:
    """Means over queries with each counted so many times: as `Replicator`, a query for a user."""

    by_query: dict[str, Floats]

    @property
    def users(self) -> int:
        """How many queries there are."""
        return len(self.by_query["mrr"])

    def metrics(self, counts: Floats, *, auc: bool = True) -> dict[str, float]:
        """By name; counts [queries]."""
        total = counts.sum()
        return {name: float(counts @ values / total) for name, values in self.by_query.items()}


@dataclass
class RetrievalMetrics:
    """HR@K, NDCG@K and MRR of queries with one target each, over the full catalogue. Streams ranks."""

    cutoffs: Sequence[int] = (10, 50, 200)
    _ranks: list[NDArray[np.int64]] = field(default_factory=list)

    def update(self, ranks: torch.Tensor) -> None:
        """Append 1-based target ranks [N]."""
        self._ranks.append(ranks.detach().cpu().to(torch.int64).numpy())

    def __len__(self) -> int:
        """Queries."""
        return sum(map(len, self._ranks))

    @property
    def by_query(self) -> dict[str, Floats]:
        """Metric -> [N] its value of each query alone."""
        ranks = np.concatenate(self._ranks) if self._ranks else np.zeros(0, np.int64)
        each: dict[str, Floats] = {"mrr": 1 / ranks}
        for k in self.cutoffs:
            each[f"hr@{k}"] = (ranks <= k).astype(np.float64)
            each[f"ndcg@{k}"] = each[f"hr@{k}"] / np.log2(ranks + 1)
        return each

    def replicator(self) -> QueryReplicator:
        """The metrics with each query counted so many times, of at least one."""
        return QueryReplicator(self.by_query)

    def compute(self, *, bootstrap: int = 0, confidence: float = 0.95, seed: int = 0) -> dict[str, Estimate]:
        """`mrr`, and `hr@K` and `ndcg@K` for each cutoff; None without a query.

        Args:
            bootstrap: replicates of the queries, for the intervals; 0: none.
        """
        each, ranks = self.by_query, range(len(self))
        if not len(ranks):
            return {name: Estimate(None) for name in each}
        if not bootstrap:
            return {name: Estimate(float(values.mean())) for name, values in each.items()}
        rng = np.random.default_rng(seed)
        draws = [
            rng.multinomial(len(ranks), np.full(len(ranks), 1 / len(ranks))) / len(ranks) for _ in range(bootstrap)
        ]
        tail = (1 - confidence) / 2
        result = {}
        for name, values in each.items():
            low, high = np.quantile([draw @ values for draw in draws], [tail, 1 - tail])
            result[name] = Estimate(float(values.mean()), float(low), float(high))
        return result
