"""Counting baselines: an item's positive rate, and a user's own positive rate with an item, from the training days alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genrank.model.sample_files import read_columns
from genrank.schemas.ids import hash_strings
from genrank.schemas.manifest import sample_files
from genrank.schemas.schema import Schema

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


def count_days(samples: Path, schema: Schema, dates: Sequence[str]) -> dict[str, Counts]:
    """`Counts` of every binary task over published days; reads four columns a task."""
    tasks = [label.name for label in schema.labels if label.kind == "binary"]
    columns = ["user_id", "candidates.item", *(f"labels.{t}{end}" for t in tasks for end in ("", "_weight"))]
    parts: dict[str, list[NDArray[np.generic]]] = {}
    for date in dates:
        for file in sample_files(samples, date):
            # One file at a time: a day's history columns are never read.
            table = read_columns(file, columns)
            candidates, labels = table["candidates"].combine_chunks(), table["labels"].combine_chunks()
            items = pc.struct_field(candidates, "item")
            user = table["user_id"].combine_chunks()
            user = hash_strings(user) if pa.types.is_string(user.type) else user
            lengths = pc.list_value_length(items).to_numpy(zero_copy_only=False)
            parts.setdefault("user", []).append(np.repeat(user.to_numpy(zero_copy_only=False), lengths))
            parts.setdefault("item", []).append(items.flatten().to_numpy())
            for name in (f"{t}{end}" for t in tasks for end in ("", "_weight")):
                parts.setdefault(name, []).append(pc.struct_field(labels, name).flatten().to_numpy())
    whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return {
        t: Counts(
            whole["user"].astype(np.int64),
            whole["item"].astype(np.int64),
            whole[t].astype(np.float64),
            whole[f"{t}_weight"].astype(np.float64),
        )
        for t in tasks
    }
