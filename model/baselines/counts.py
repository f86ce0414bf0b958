"""Counting baselines: an item's positive rate, and a user's own positive rate with an item, from the training days alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


class Counts:
    """Smoothed positive rates of one binary task.

    An item's rate is (positives + strength * base rate) / (impressions + strength). A pair's is (positives + strength * item's rate) /
    (impressions + strength): a pair never seen scores as its item. Weights count as impressions; immature labels don't.

    Args:
        users, items: [N] int64; labels, weights: [N].
    """

    def __init__(self, users: Ids, items: Ids, labels: Floats, weights: Floats, *, strength: float = 10.0) -> None:
        keep = weights > 0
        users, items, labels, weights = users[keep], items[keep], labels[keep], weights[keep]
        self.strength = strength
        self.base = float(np.average(labels, weights=weights)) if len(labels) else 0.0
        self.items, row = np.unique(items, return_inverse=True)
        self.item_rate = self._rate(row, len(self.items), labels, weights, np.full(len(self.items), self.base))
        self.users = np.unique(users)
        keys = np.searchsorted(self.users, users) * len(self.items) + row
        self.pairs, pair = np.unique(keys, return_inverse=True)
        self.pair_rate = self._rate(
            pair, len(self.pairs), labels, weights, self.item_rate[self.pairs % max(len(self.items), 1)]
        )

    def _rate(self, row: Ids, rows: int, labels: Floats, weights: Floats, prior: Floats) -> Floats:
        positives, total = np.bincount(row, weights * labels, rows), np.bincount(row, weights, rows)
        return (positives + self.strength * prior) / (total + self.strength)

    def popularity(self, items: Ids) -> Floats:
        """[C]: the item's rate; the base rate of an item never shown."""
        at, known = _find(self.items, items)
        return np.where(known, self.item_rate[at] if len(self.items) else self.base, self.base)

    def user_item(self, users: Ids, items: Ids) -> Floats:
        """[C]: the pair's rate; the item's for a pair never seen."""
        item, known_item = _find(self.items, items)
        user, known_user = _find(self.users, users)
        pair, known = _find(self.pairs, user * len(self.items) + item)
        known &= known_item & known_user
        own = self.pair_rate[pair] if len(self.pairs) else np.zeros(len(items))
        return np.where(known, own, self.popularity(items))


def _find(sorted_ids: Ids, ids: Ids) -> tuple[Ids, NDArray[np.bool_]]:
    if not len(sorted_ids):
        return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
    at = np.searchsorted(sorted_ids, ids).clip(max=len(sorted_ids) - 1)
    return at, sorted_ids[at] == ids
