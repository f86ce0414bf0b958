"""Metrics of parts of what was judged: new items, users without a history, small and large requests, times of day."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrank.model.documents import SliceMetrics
from genrank.model.metrics import Predictions
from genrank.model.request_metrics import request_codes
from genrank.schemas.schema import CANDIDATES, Schema
from genrank.tokenization.batch import Batch

Ids = NDArray[np.int64]

SHOWN = ("gauc", "request_auc", "auc", "ne", "calibration", "rmse", "bias")
"""Metrics that are kept of a slice."""
SIZES = (5, 10, 20)
"""Request sizes that divide slices: up to each, and above the last."""
HOURS = 6
"""Of the day that a slice takes together."""


class Slices:
    """Collects a model's predictions and the slices they fall in.

    Args:
        trained_items: items of the training days; None where they aren't known.
    """

    def __init__(self, schema: Schema, trained_items: Ids | None) -> None:
        self.schema, self.trained_items = schema, trained_items
        self.by_request = schema.candidates.request is not None
        self._columns: dict[str, list[Tensor]] = {}

    def update(self, batch: Batch, owner: Tensor, scores: Mapping[str, Tensor]) -> None:
        """A batch on the host: the user of each candidate [C], and label -> its predictions [C]."""
        events = torch.zeros(len(batch), dtype=torch.int64)
        for name, group in batch.groups.items():
            if name in {sequence.name for sequence in self.schema.histories}:
                events += group.lengths
        columns = {
            "user": owner,
            "request": batch.request,
            "item": batch.item,
            "ts": batch.groups[CANDIDATES].ts,
            "history": torch.repeat_interleave(events, batch.candidates.lengths, output_size=len(batch.item)),
        }
        for label in self.schema.labels:
            columns |= {
                f"{label.name}:label": batch.labels[label.name],
                f"{label.name}:weight": batch.weights[label.name],
            }
            columns[f"{label.name}:score"] = scores[label.name].cpu()
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values)

    def compute(self, *, bootstrap: int, seed: int) -> dict[str, dict[str, dict[str, SliceMetrics]]]:
        """Label -> dimension -> slice -> metrics of the model; slices without a candidate are left out."""
        columns = {name: torch.cat(parts) for name, parts in self._columns.items()}
        if not columns:
            return {}
        found: dict[str, dict[str, dict[str, SliceMetrics]]] = {}
        for dimension, slices in self._dimensions(columns).items():
            for name, rows in slices.items():
                chosen = torch.from_numpy(np.flatnonzero(rows))
                for label in self.schema.labels:
                    each = Predictions(label.kind, by_request=self.by_request)
                    truth, score, weight = (
                        columns[f"{label.name}:{what}"][chosen] for what in ("label", "score", "weight")
                    )
                    each.update(columns["user"][chosen], truth, score, weight, columns["request"][chosen])
                    if len(each):
                        metrics = each.compute(bootstrap=bootstrap, seed=seed, auc_interval=False)
                        kept = {metric: metrics[metric] for metric in SHOWN if metric in metrics}
                        of_label = found.setdefault(label.name, {}).setdefault(dimension, {})
                        of_label[name] = SliceMetrics(candidates=len(each), metrics=kept)
        return found

    def _dimensions(self, columns: Mapping[str, Tensor]) -> dict[str, dict[str, NDArray[np.bool_]]]:
        """Dimension -> slice -> [C] whether a candidate falls in it; none of one dimension overlap."""
        found: dict[str, dict[str, NDArray[np.bool_]]] = {}
        if self.trained_items is not None:
            known = np.isin(columns["item"].numpy(), self.trained_items)
            found["item"] = {"new: on no training day": ~known, "known": known}
        if self.schema.histories:
            some = columns["history"].numpy() > 0
            found["user"] = {"cold: no history": ~some, "with a history": some}
        if self.by_request:
            codes = request_codes(columns["user"].numpy(), columns["request"].numpy())
            sizes = np.bincount(codes)[codes]
            for low, high in itertools.pairwise((0, *SIZES)):
                found.setdefault("request", {})[f"{low + 1} to {high} candidates"] = (sizes > low) & (sizes <= high)
            found["request"][f"over {SIZES[-1]} candidates"] = sizes > SIZES[-1]
        hours = self.schema.local_days.local(columns["ts"].numpy()) // 3_600_000 % 24
        found["hour"] = {
            f"{first:02d} to {first + HOURS - 1:02d} h": (hours >= first) & (hours < first + HOURS)
            for first in range(0, 24, HOURS)
        }
        return found
