"""The best single number of the candidates, as it is: what sorting by one column achieves without any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genrank.model.baselines.numbers import Numbers
from genrank.model.metrics import gauc
from genrank.model.predict import candidate_users
from genrank.schemas.schema import Schema
from genrank.tokenization.batch import Batch
from genrank.tokenization.reader import SampleReader

CHOSEN_ON = 100_000
"""Candidates of the training day that a column is chosen on at most."""
LOWEST = -3.0e38
"""Of a missing number: behind every other."""


class Column(NamedTuple):
    """A number of the candidates to sort by."""

    at: int
    """Of `Numbers.names`."""
    name: str
    largest_first: bool

    def scores(self, numbers: Tensor) -> Tensor:
        """[C, columns] -> [C] float32: larger ranks higher; a missing number is last."""
        values = numbers[:, self.at]
        return (values if self.largest_first else -values).nan_to_num(LOWEST, LOWEST * -1, LOWEST)

    def in_words(self) -> str:
        """`item_ctr_1d, largest first`."""
        return f"{self.name.partition('.')[2]}, {'largest' if self.largest_first else 'smallest'} first"


def best_columns(samples: Path, schema: Schema, date: str, labels: Sequence[str]) -> dict[str, Column]:
    """Label -> the column, and its direction, of the largest GAUC on a training day; a label that has no GAUC there is absent.

    Raises:
        UserError: as `SampleReader`.
    """
    numbers = Numbers(schema, user=False)
    if not numbers.names:
        return {}
    batches: list[Batch] = []
    matrices: list[Tensor] = []
    for batch in SampleReader(samples, schema, [date], view="user_day", shuffle=False):
        batches.append(batch)
        matrices.append(numbers(batch))
        if sum(map(len, matrices)) >= CHOSEN_ON:
            break
    if not batches:
        return {}
    matrix = torch.cat(matrices)
    users = torch.cat([candidate_users(batch) for batch in batches]).numpy()
    found: dict[str, Column] = {}
    for label in labels:
        truth, weights = (
            torch.cat([values[label] for values in each]).double().numpy()
            for each in ([b.labels for b in batches], [b.weights for b in batches])
        )
        keep = weights > 0
        best = 0.0
        for at, name in enumerate(numbers.names):
            for largest_first in (True, False):
                column = Column(at, name, largest_first)
                scores = column.scores(matrix).double().numpy()[keep]
                reached = gauc(users[keep], truth[keep], scores, weights[keep])
                if np.isfinite(reached) and reached > best:
                    best, found[label] = reached, column
    return found
