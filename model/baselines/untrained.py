"""What a ranker must beat: counts of items and of pairs, the best popularity over windows, the best single column. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrank.model.baselines.best_column import Column, best_columns
from genrank.model.baselines.counts import Counts
from genrank.model.baselines.numbers import Numbers
from genrank.model.baselines.popularity import Exposures, Popularity, WindowedCounts, choose, read_exposures, windowed
from genrank.schemas.errors import UserError
from genrank.schemas.schema import Schema
from genrank.tokenization.batch import Batch


@dataclass(frozen=True)
class Untrained:
    """The baselines of every binary label, by label."""

    items: NDArray[np.int64]
    """Items of the training days."""
    counts: dict[str, Counts]
    windows: dict[str, WindowedCounts]
    popularity: dict[str, Popularity]
    columns: dict[str, Column]
    numbers: Numbers

    @classmethod
    def of_days(cls, samples: Path, schema: Schema, trained: Sequence[str], judged: Sequence[str]) -> Untrained | None:
        """Counted over the training days, and for windows over the judged days up to each exposure; window and column are chosen on the
        last training day. None without training days, or where their samples are gone."""
        labels = [label.name for label in schema.labels if label.kind == "binary"]
        if not trained:
            return None
        try:
            before = read_exposures(samples, schema, trained)
            last = read_exposures(samples, schema, trained[-1:])
            columns = best_columns(samples, schema, trained[-1], labels)
        except UserError:
            return None
        later = read_exposures(samples, schema, [date for date in judged if date not in trained])
        windows = {label: windowed(_both(before, later), schema, label) for label in labels}
        return cls(
            np.unique(before.item),
            {t: Counts(before.user, before.item, before.labels[t], before.weights[t]) for t in labels},
            windows,
            {label: choose(windows[label], last, label) for label in labels},
            columns,
            Numbers(schema, user=False),
        )

    @property
    def chosen(self) -> dict[str, dict[str, str]]:
        """Label -> row -> what was chosen for it."""
        found = {label: {"best_popularity": each.in_words(label)} for label, each in self.popularity.items()}
        for label, column in self.columns.items():
            found[label]["best_column"] = column.in_words()
        return found

    def scores(self, batch: Batch, owner: Tensor) -> dict[str, dict[str, Tensor]]:
        """Label -> row -> [C]: scores of a batch on the host, `owner` [C] the user of each candidate."""
        items, users, ts = batch.item.numpy(), owner.numpy(), batch.candidates.ts.numpy()
        numbers = self.numbers(batch) if self.columns else None
        found: dict[str, dict[str, Tensor]] = {}
        for label, counts in self.counts.items():
            rows = {
                "popularity": counts.popularity(items),
                "user_item_ctr": counts.user_item(users, items),
                "best_popularity": self.popularity[label].scores(self.windows[label], items, ts),
            }
            found[label] = {name: torch.from_numpy(scores) for name, scores in rows.items()}
            if numbers is not None and label in self.columns:
                found[label]["best_column"] = self.columns[label].scores(numbers)
        return found


def _both(first: Exposures, second: Exposures) -> Exposures:
    def joined(a: dict[str, NDArray[np.float64]], b: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        return {name: np.concatenate([values, b[name]]) for name, values in a.items()}

    return Exposures(
        np.concatenate([first.user, second.user]),
        np.concatenate([first.item, second.item]),
        np.concatenate([first.ts, second.ts]),
        joined(dict(first.labels), dict(second.labels)),
        joined(dict(first.weights), dict(second.weights)),
    )
